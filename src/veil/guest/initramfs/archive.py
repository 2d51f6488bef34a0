# SPDX-License-Identifier: GPL-2.0-or-later
"""The form of the initramfs: the 'newc' cpio format (Linux Documentation/driver-api/early-userspace/buffer-format.rst).

Not compressed: loading a few more megabytes costs the host nothing, decompressing them costs the guest emulated time.
The same inputs give the same bytes, since the archive is measured at launch.
"""

import stat
from collections.abc import Mapping
from dataclasses import dataclass

from veil.guest.errors import GuestImageError

__all__ = ["Node", "pack_cpio"]


@dataclass(frozen=True)
class Node:
    """A member of the archive. `mode` has its type; `data` is a file's contents or a link's target."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)

    @classmethod
    def file(cls, data: bytes, permissions: int = 0o644) -> "Node":
        """A regular file."""
        return cls(stat.S_IFREG | permissions, data)

    @classmethod
    def link(cls, target: str) -> "Node":
        """A symbolic link."""
        return cls(stat.S_IFLNK | 0o777, target.encode())


def pack_cpio(nodes: Mapping[str, Node]) -> bytes:
    """A newc archive of the nodes by path (without a leading slash); directories come before what they hold."""
    out = bytearray()
    for number, name in enumerate(sorted(nodes), 1):
        if name.startswith("/") or not name or ".." in name.split("/"):
            raise GuestImageError(f"bad path in the initramfs: {name!r}")
        _member(out, number, name.encode(), nodes[name])
    _member(out, 0, b"TRAILER!!!", Node(0))
    return bytes(out) + bytes(-len(out) % 512)


def _member(out: bytearray, number: int, name: bytes, node: Node) -> None:
    links = 2 if stat.S_ISDIR(node.mode) else 1
    fields = (number, node.mode, 0, 0, links, 0, len(node.data), 0, 0, *node.device, len(name) + 1, 0)
    out += b"070701" + b"".join(b"%08x" % value for value in fields) + name + b"\0"
    out += bytes(-len(out) % 4)
    out += node.data
    out += bytes(-len(out) % 4)
