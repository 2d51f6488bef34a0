# SPDX-License-Identifier: GPL-2.0-or-later
"""What users name may be anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from veil.cache import Cache
from veil.guest.errors import GuestImageError
from veil.guest.igvm.file import open_igvm
from veil.guest.linux.kernel import open_kernel
from veil.guest.named_files import read_named_file
from veil.guest.ovmf.package import open_firmware, read_initrd


def test_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_named_file(tmp_path / "file", "the file", 5) == b"12345"
    assert read_named_file(str(tmp_path / "file"), "the file", 6) == b"12345"


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    for path, most, words in (
        (tmp_path / "file", 4, "too large for the file: more than 4"),
        (tmp_path / "none", 4, "cannot read the file: No such file"),
        (tmp_path, 4, "cannot read the file: Is a directory"),
        (Path("/dev/zero"), 4, "cannot read the file: it is no ordinary file"),
    ):
        with pytest.raises(GuestImageError, match=words):
            read_named_file(path, "the file", most)


def test_a_pipe_is_waited_for_by_nobody(tmp_path: Path) -> None:
    pipe, cache = tmp_path / "pipe", Cache(tmp_path / "cache")
    os.mkfifo(pipe)
    for read in (
        lambda: open_kernel(cache, pipe),
        lambda: open_firmware(cache, str(pipe)),
        lambda: read_initrd(pipe),
        lambda: open_igvm(pipe),
    ):
        with pytest.raises(GuestImageError, match="no ordinary file"):
            read()
