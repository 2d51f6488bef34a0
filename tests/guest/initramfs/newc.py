# SPDX-License-Identifier: GPL-2.0-or-later
"""An independent reader of the initramfs's format."""

from __future__ import annotations

__all__ = ["unpack"]


def unpack(archive: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """An independent reader of the newc format."""
    found, at, inodes = {}, 0, []
    while True:
        assert archive[at : at + 6] == b"070701"
        assert at % 4 == 0
        values = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name_at = at + 110
        name = archive[name_at : name_at + values[11] - 1].decode()
        assert archive[name_at + values[11] - 1] == 0
        data_at = name_at + values[11] + -(name_at + values[11]) % 4
        if name == "TRAILER!!!":
            assert not archive[data_at:].strip(b"\0")
            break
        assert values[2:4] + values[5:6] == [0, 0, 0], "no owners and no times: the archive is measured"
        found[name] = (values[1], archive[data_at : data_at + values[6]], (values[9], values[10]))
        inodes.append(values[0])
        at = data_at + values[6] + -values[6] % 4
    assert len(set(inodes)) == len(inodes)
    assert list(found) == sorted(found)
    return found
