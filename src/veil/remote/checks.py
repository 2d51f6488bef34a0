# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks with their outcome in words."""

from __future__ import annotations

from dataclasses import dataclass

from veil.formats.printable import printable

__all__ = ["Check", "Checklist"]

#: Names in certificates are the host's. So much has the words of any honest check, and the list of what is expected.
_WORDS_MOST = 10_000


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `words` say what was found and, if it failed, what was expected."""

    name: str
    ok: bool
    words: str


class Checklist:
    """Checks in the order in which they were made."""

    def __init__(self) -> None:
        self._checks: list[Check] = []

    def add(self, name: str, ok: bool, good: str, bad: str) -> bool:
        """Write down an outcome with the words for it; returns `ok`."""
        self._checks.append(Check(printable(name), ok, printable(good if ok else bad, _WORDS_MOST)))
        return ok

    def skip(self, name: str, because: str) -> None:
        """What could not be checked has not been proved: it counts as failed."""
        self._checks.append(Check(printable(name), False, printable(f"not checked, because {because}", _WORDS_MOST)))

    def done(self) -> tuple[Check, ...]:
        """All of them."""
        return tuple(self._checks)
