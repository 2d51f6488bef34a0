# SPDX-License-Identifier: GPL-2.0-or-later
"""A second opinion on the RMP, written from the AMD64 manual and not from the machine's C code.

Every page has a record; the 512 pages of a 2 MiB entry share one.  Permissions are sets of letters, results are names:
clarity over speed.  APM volume 2, 15.36.3 to 15.36.10; volume 3, PVALIDATE, RMPADJUST, RMPQUERY, RMPUPDATE, PSMASH.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field

LETTERS = {1: "r", 2: "w", 4: "u", 8: "s"}
EVERYTHING = frozenset("rwus")


def letters(mask: int) -> frozenset[str]:
    """The permissions that a mask of the instructions names."""
    return frozenset(letter for bit, letter in LETTERS.items() if mask & bit)


@dataclass
class Record:
    """One RMP entry."""

    large: bool = False
    guest: bool = False
    validated: bool = False
    vmsa: bool = False
    frozen: bool = False
    levels: list[frozenset[str]] = field(default_factory=lambda: [frozenset()] * 4)


class Fault(Exception):
    """The instruction did not complete; the argument names what happened instead."""


class Model:
    """The table, with one method per instruction."""

    def __init__(self, pages: int) -> None:
        self.pages = [Record() for _ in range(pages)]
        self.running: int | None = None

    # Accesses

    def denies(self, page: int, vmpl: int, wanted: frozenset[str], private: bool) -> str | None:
        """Why an access fails, None if it does not."""
        if page >= len(self.pages):
            return "rmp+enc" if private else None
        record = self.pages[page]
        if not private:
            return "rmp" if record.guest else None
        if not record.guest:
            return "rmp+enc"
        if not record.validated:
            return "not validated"
        if not wanted <= record.levels[vmpl]:
            return "rmp+enc+vmpl"
        if "w" in wanted and page == self.running:
            return "rmp+enc"
        return None

    def allowed(self, pages: Iterable[int]) -> set[tuple[int, str]]:
        """All that anybody may do with these pages now, for comparison with later."""
        result: set[tuple[int, str]] = set()
        for page in pages:
            record = self.pages[page]
            if not record.guest:
                result.add((page, "shared"))
            elif record.validated:
                result |= {(page, f"{vmpl}{letter}") for vmpl in range(4) for letter in record.levels[vmpl]}
        return result

    def _busy(self, page: int, large: bool) -> bool:
        return self.running is not None and self.running in range(page, page + (512 if large else 1))

    # Guest instructions

    def _operand(self, page: int, private: bool, large: bool, *, sized: bool = True) -> Record:
        if not private:
            raise Fault("rmp")
        if page >= len(self.pages):
            raise Fault("rmp+enc")
        record = self.pages[page]
        if not record.guest or record.frozen:
            raise Fault("rmp+enc")
        if sized and record.large and not large:
            raise Fault("rmp+enc+sizem")
        return record

    def pvalidate(self, page: int, vmpl: int, cpl: int, large: bool, validate: bool, private: bool) -> tuple[str, bool]:
        if cpl:
            raise Fault("gp")
        if vmpl:
            return "FAIL_PERMISSION", False
        if large and page % 512:
            return "FAIL_INPUT", False
        record = self._operand(page, private, large)
        if large and not record.large:
            return "FAIL_SIZEMISMATCH", False
        if self._busy(page, large):
            return "FAIL_INUSE", False
        unchanged = record.validated == validate
        record.validated = validate
        return "SUCCESS", unchanged

    def rmpadjust(
        self, page: int, vmpl: int, cpl: int, large: bool, target: int, mask: int, vmsa: bool, private: bool
    ) -> str:
        if cpl:
            raise Fault("gp")
        if target > 3 or mask > 15 or (large and page % 512):
            return "FAIL_INPUT"
        if target <= vmpl:
            return "FAIL_PERMISSION"
        record = self._operand(page, private, large)
        if not record.validated:
            raise Fault("not validated")
        if large and not record.large:
            return "FAIL_SIZEMISMATCH"
        if self._busy(page, large):
            return "FAIL_INUSE"
        if not letters(mask) <= record.levels[vmpl]:
            return "FAIL_PERMISSION"
        if vmpl == 0:
            if vmsa and large:
                return "FAIL_INPUT"
            record.vmsa = vmsa
        record.levels[target] = letters(mask)
        return "SUCCESS"

    def rmpquery(
        self, page: int, vmpl: int, cpl: int, target: int, private: bool
    ) -> tuple[str, frozenset[str], bool, bool]:
        nothing: frozenset[str] = frozenset()
        if cpl:
            raise Fault("gp")
        if target > 3:
            return "FAIL_INPUT", nothing, False, False
        if target < vmpl:
            return "FAIL_PERMISSION", nothing, False, False
        record = self._operand(page, private, False, sized=False)
        if not record.validated:
            raise Fault("not validated")
        return "SUCCESS", record.levels[target], record.vmsa, record.large

    # Host instructions

    def rmpupdate(self, page: int, assigned: bool, large: bool, frozen: bool) -> str:
        if large and (page % 512 or page + 512 > len(self.pages)):
            return "FAIL_INPUT"
        if page >= len(self.pages) or (frozen and not assigned):
            return "FAIL_INPUT"
        old = self.pages[page]
        if old.frozen:
            return "FAIL_PERMISSION"
        if self._busy(page, large):
            return "FAIL_INUSE"
        if old.large and not large:
            return "FAIL_OVERLAP"
        if large and not old.large and any(record.guest for record in self.pages[page : page + 512]):
            return "FAIL_OVERLAP"
        levels = [EVERYTHING, *[frozenset[str]()] * 3]
        if not assigned:
            # The hypervisor's memory has no size.
            for number in range(page, page + (512 if large else 1)):
                self.pages[number] = Record()
        elif large:
            self.pages[page : page + 512] = [Record(large=True, guest=True, frozen=frozen, levels=levels)] * 512
        else:
            self.pages[page] = Record(guest=True, frozen=frozen, levels=levels)
        return "SUCCESS"

    def psmash(self, page: int) -> str:
        if page % 512 or page + 512 > len(self.pages):
            return "FAIL_INPUT"
        record = self.pages[page]
        if record.frozen:
            return "FAIL_PERMISSION"
        if not record.large:
            return "FAIL_INPUT"
        for number in range(page, page + 512):
            self.pages[number] = copy.deepcopy(record)
            self.pages[number].large = False
        return "SUCCESS"

    # The secure processor

    def launch(self, page: int, large: bool, vmsa: bool, masks: tuple[int, int, int]) -> str:
        if large and (page % 512 or page + 512 > len(self.pages) or vmsa):
            return "FAIL_INPUT"
        if page >= len(self.pages):
            return "FAIL_INPUT"
        record = self.pages[page]
        if not record.guest or record.validated:
            return "FAIL_PERMISSION"
        if record.large != large:
            return "FAIL_SIZEMISMATCH"
        record.validated, record.frozen, record.vmsa = True, False, vmsa
        record.levels = [EVERYTHING, *(letters(mask) for mask in masks)]
        return "SUCCESS"
