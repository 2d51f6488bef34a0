# SPDX-License-Identifier: GPL-2.0-or-later
"""The form of the initramfs."""

from __future__ import annotations

import stat

import pytest

from tests.guest.initramfs.newc import unpack
from veil.guest.errors import GuestImageError
from veil.guest.initramfs.archive import Node, pack_cpio


def test_members() -> None:
    archive = pack_cpio({"b": Node.link("a/c"), "a": Node(stat.S_IFDIR | 0o755), "a/c": Node.file(b"12345", 0o600)})
    assert unpack(archive) == {
        "a": (stat.S_IFDIR | 0o755, b"", (0, 0)),
        "a/c": (stat.S_IFREG | 0o600, b"12345", (0, 0)),
        "b": (stat.S_IFLNK | 0o777, b"a/c", (0, 0)),
    }


@pytest.mark.parametrize("name", ["/a", "a/../b", ""])
def test_bad_names(name: str) -> None:
    with pytest.raises(GuestImageError, match="bad path"):
        pack_cpio({name: Node.file(b"")})
