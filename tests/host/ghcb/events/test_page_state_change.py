# SPDX-License-Identifier: GPL-2.0-or-later
"""Page state changes by GHCB page."""

from __future__ import annotations

import struct

import pytest

from tests.host.fakes import GHCB, MEMORY, OK, PAGE, SHARED, VMSA, Guest, malformed
from veil.formats.ghcb import GhcbReason
from veil.host import MalformedGhcb
from veil.snp.rmp import RmpResult


def psc(*entries: int, current: int = 0, last: int | None = None, reserved: int = 0) -> bytes:
    end = len(entries) - 1 if last is None else last
    return struct.pack(f"<HHI{len(entries)}Q", current, end, reserved, *entries)


PRIVATE, SHARE, SMASH, UNSMASH = (operation << 52 for operation in (1, 2, 3, 4))
LARGE = 1 << 56


class TestPageStateChange:
    EVENT = 0x80000010

    def entries(self, guest: Guest, count: int) -> list[int]:
        return list(struct.unpack(f"<{count}Q", guest.buffer(8 + 8 * count)[8:]))

    def test_share_and_back(self, guest: Guest) -> None:
        data = psc(SHARE | 0x9000, SHARE | 0xA000, PRIVATE | 0x9000)
        assert guest.call(self.EVENT, data=data) == OK
        assert not guest.view.is_shared(0x9000)
        assert guest.view.is_shared(0xA000)
        assert guest.buffer(8) == struct.pack("<HHI", 3, 2, 0)
        assert [entry & 0xFFF for entry in self.entries(guest, 3)] == [1, 1, 1]
        assert guest.host.counts.page_changes == 3

    def test_large(self, guest: Guest) -> None:
        guest.view.large.add(512)
        assert guest.call(self.EVENT, data=psc(SHARE | LARGE | 0x20_0000)) == OK
        assert guest.view.is_shared(0x20_0000, 512 * PAGE)
        assert self.entries(guest, 1)[0] & 0xFFF == 512
        assert guest.call(self.EVENT, data=psc(PRIVATE | LARGE | 0x20_0000)) == OK
        assert guest.view.large == {512}

    def test_large_over_small_entries(self, guest: Guest) -> None:
        assert guest.call(self.EVENT, data=psc(SHARE | 0x20_5000, SHARE | LARGE | 0x20_0000)) == OK
        assert guest.view.is_shared(0x20_0000, 512 * PAGE)

    def test_large_private_with_private_parts(self, guest: Guest) -> None:
        assert guest.call(self.EVENT, data=psc(SHARE | 0x20_5000, PRIVATE | LARGE | 0x20_0000)) == OK
        assert not guest.view.is_shared(0x20_5000)
        assert guest.view.large == set()

    def test_large_private_that_is_the_guests_already(self, guest: Guest) -> None:
        guest.view.log.clear()
        assert guest.call(self.EVENT, data=psc(PRIVATE | LARGE | 0x20_0000)) == OK
        assert self.entries(guest, 1)[0] & 0xFFF == 512
        # RMPUPDATE would take the pages' validation away.
        assert guest.view.log == []

    def test_continues_a_started_entry(self, guest: Guest) -> None:
        assert guest.call(self.EVENT, data=psc(SHARE | LARGE | 0x20_0000 | 510)) == OK
        assert guest.view.is_shared(0x3F_E000, 2 * PAGE)
        assert not guest.view.is_shared(0x3F_D000)

    def test_smash_is_advice(self, guest: Guest) -> None:
        guest.view.large.add(512)
        assert guest.call(self.EVENT, data=psc(SMASH | LARGE | 0x20_0000, UNSMASH | LARGE | 0x20_0000)) == OK
        assert guest.view.large == set()
        assert not guest.view.is_shared(0x20_0000)

    def test_starts_at_current(self, guest: Guest) -> None:
        assert guest.call(self.EVENT, data=psc(SHARE | 0x9000, SHARE | 0xA000, current=1)) == OK
        assert not guest.view.is_shared(0x9000)
        assert guest.view.is_shared(0xA000)

    def test_nothing_left(self, guest: Guest) -> None:
        assert guest.call(self.EVENT, data=psc(SHARE | 0x9000, current=1, last=0)) == OK
        assert guest.view.log == []

    @pytest.mark.parametrize("data", [psc(SHARE | 0x9000, last=253), psc(SHARE | 0x9000, last=0xFFFF)])
    def test_header_error(self, guest: Guest, data: bytes) -> None:
        assert guest.call(self.EVENT, data=data) == {"info1": 0, "info2": 1 << 32 | 1}
        assert guest.view.log == []

    def test_what_is_reserved_in_the_header_says_nothing(self, guest: Guest) -> None:
        """Debian 13's OVMF leaves there what was in its buffer, and KVM does not look."""
        assert guest.call(self.EVENT, data=psc(SHARE | 0x9000, reserved=0x6C626174)) == OK
        assert guest.view.is_shared(0x9000)

    @pytest.mark.parametrize(
        "entry",
        [
            0x9000,
            5 << 52 | 0x9000,
            SHARE | MEMORY,
            SHARE | LARGE | 0x20_1000,
            SHARE | 0x9000 | 2,
            SHARE | LARGE | 0x20_0000 | 513,
            SHARE | 0x9000 | 1 << 57,
            SHARE | 0x9000 | 1 << 63,
        ],
    )
    def test_entry_error(self, guest: Guest, entry: int) -> None:
        answer = guest.call(self.EVENT, data=psc(SHARE | 0x9000, entry, SHARE | 0xA000))
        assert answer == {"info1": 0, "info2": 1 << 32 | 2}
        assert guest.buffer(2) == b"\x01\0"
        assert guest.view.is_shared(0x9000)
        assert not guest.view.is_shared(0xA000)

    def test_rmp_refuses(self, guest: Guest) -> None:
        guest.view.refuse = RmpResult.FAIL_INUSE
        assert guest.call(self.EVENT, data=psc(SHARE | 0x9000)) == {"info1": 0, "info2": 0x100 << 32}

    def test_all_entries(self, guest: Guest) -> None:
        data = psc(*(SHARE | 0x20_0000 + PAGE * page for page in range(253)))
        assert guest.call(self.EVENT, data=data) == OK
        assert guest.view.is_shared(0x20_0000, 253 * PAGE)

    def test_giving_the_ghcb_away(self, guest: Guest) -> None:
        with pytest.raises(MalformedGhcb):
            guest.call(self.EVENT, data=psc(PRIVATE | GHCB))

    def test_giving_the_request_away(self, guest: Guest) -> None:
        guest.view.memory[SHARED : SHARED + 16] = psc(PRIVATE | SHARED)
        answer = guest.call(self.EVENT, scratch=SHARED)
        assert answer == malformed(GhcbReason.INVALID_SCRATCH_AREA)

    def test_scratch(self, guest: Guest) -> None:
        assert guest.call(self.EVENT) == malformed(GhcbReason.MISSING_INPUT)
        assert guest.call(self.EVENT, scratch=VMSA) == malformed(GhcbReason.INVALID_SCRATCH_AREA)
        guest.view.memory[SHARED + PAGE - 8 : SHARED + PAGE] = struct.pack("<HHI", 0, 0, 0)
        assert guest.call(self.EVENT, scratch=SHARED + PAGE - 8) == malformed(GhcbReason.INVALID_SCRATCH_AREA)
