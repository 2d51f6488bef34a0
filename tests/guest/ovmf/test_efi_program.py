# SPDX-License-Identifier: GPL-2.0-or-later
"""A file in a kernel's place is an EFI program, a bzImage, or something else: told apart, or refused in one line."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.cvm import ConfidentialVM
from veil.errors import VeilError
from veil.guest.errors import GuestImageError
from veil.guest.ovmf.efi_program import read_efi_program

_HEADER = 0x80


def efi_header(*, machine: int = 0x8664, kind: int = 0x20B, subsystem: int = 10) -> bytes:
    data = bytearray(0x400)
    data[:2] = b"MZ"
    struct.pack_into("<I", data, 0x3C, _HEADER)
    struct.pack_into("<4sH", data, _HEADER, b"PE\0\0", machine)
    struct.pack_into("<H", data, _HEADER + 24, kind)
    struct.pack_into("<H", data, _HEADER + 24 + 68, subsystem)
    return bytes(data)


def _file(folder: Path, data: bytes) -> Path:
    path = folder / "program.efi"
    path.write_bytes(data)
    return path


def test_a_program_is_read(tmp_path: Path) -> None:
    assert read_efi_program(_file(tmp_path, efi_header())) == efi_header()


def test_a_bzimage_is_none_though_it_has_the_same_headers(tmp_path: Path) -> None:
    data = bytearray(efi_header())
    data[0x1FE:0x200], data[0x202:0x206] = b"\x55\xaa", b"HdrS"
    assert read_efi_program(_file(tmp_path, bytes(data))) is None


@pytest.mark.parametrize("other", [{"machine": 0xAA64}, {"kind": 0x10B}, {"subsystem": 12}], ids=str)
def test_programs_for_others_are_refused(tmp_path: Path, other: dict[str, int]) -> None:
    with pytest.raises(GuestImageError, match="no EFI application for x86-64"):
        read_efi_program(_file(tmp_path, efi_header(**other)))


@given(cut=st.integers(0, 0x400), changed=st.dictionaries(st.integers(0, 0xFF), st.integers(0, 255), max_size=4))
def test_whatever_is_in_the_file(tmp_path_factory: pytest.TempPathFactory, cut: int, changed: dict[int, int]) -> None:
    data = bytearray(efi_header())
    for at, value in changed.items():
        data[at] = value
    path = _file(tmp_path_factory.getbasetemp(), bytes(data[:cut]))
    with contextlib.suppress(GuestImageError):
        assert read_efi_program(path) in (None, bytes(data[:cut]))


def test_it_needs_an_initrd_that_says_that_nobody_runs_commands(tmp_path: Path) -> None:
    path = _file(tmp_path, efi_header())
    with pytest.raises(VeilError, match="an empty file will do"):
        ConfidentialVM(kernel=path, firmware="debian", monitor=False)._assembly.boot_files  # noqa: B018
    empty = tmp_path / "empty"
    empty.touch()
    files = ConfidentialVM(
        kernel=path, firmware="debian", monitor=False, initrd=empty, append="some words"
    )._assembly.boot_files
    assert files is not None
    assert (files.kernel, files.initrd, files.command_line) == (efi_header(), b"", "some words")
