# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks with their outcome in words."""

from __future__ import annotations

from dataclasses import dataclass

from veil.formats.printable import printable
from veil.remote.errors import VerificationFailed

__all__ = ["TOPICS", "Check", "Checklist", "Outcome"]

#: What is checked. docs/attestation.md has a section "check: TOPIC" for each.
TOPICS = (
    "root", "signature", "certificates", "validity", "revocation", "report signature", "signing key", "endorsement",
    "TCB", "chip ID", "processor", "reserved fields", "runtime data", "firmware", "debug", "guest policy",
    "measurement", "report data", "host data", "family id", "image id", "ID key", "author key", "chip", "guest SVN",
    "VMPL", "minimum TCB", "launch TCB", "report version", "mitigations", "platform", "product", "freshness",
    "channel key", "what was launched",
)  # fmt: skip
_DOCUMENT = "docs/attestation.md"
#: The host chooses the names in certificates: text is cut at this many characters. Any honest check, with the list of
#: what is expected, fits.
_MAX_TEXT = 10_000


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `words` say what was found and, if it failed, what was expected."""

    name: str
    ok: bool
    words: str
    topic: str
    """What is checked, one of TOPICS; `name` may say of what, too."""
    note: bool = False
    """It holds, and there is something that its reader may want to know."""

    @property
    def explained_at(self) -> str:
        """Where the documentation explains it."""
        return f"{_DOCUMENT}#check-{self.topic.lower().replace(' ', '-')}"


@dataclass(frozen=True)
class Outcome:
    """Checks that were made, all of them, and what follows."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Did every check succeed?"""
        return all(check.ok for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that did not."""
        return tuple(check for check in self.checks if not check.ok)

    def raise_for_failure(self) -> None:
        """VerificationFailed unless all is well."""
        if not self.ok:
            raise VerificationFailed("; ".join(f"{check.name}: {check.words}" for check in self.failures))


class Checklist:
    """Checks in the order in which they were made. `topic` is one of TOPICS, and the name where no other is given."""

    def __init__(self) -> None:
        self._checks: list[Check] = []

    def add(self, name: str, ok: bool, good: str, bad: str, *, topic: str | None = None, note: bool = False) -> bool:
        """Write down an outcome with the words for it; returns `ok`. `note`: what holds deserves a look."""
        topic = topic or name
        if topic not in TOPICS:
            raise AssertionError(f"nobody has explained the check {topic!r}")
        words = printable(good if ok else bad, _MAX_TEXT)
        self._checks.append(Check(printable(name), ok, words, topic, note=ok and note))
        return ok

    def skip(self, name: str, because: str) -> None:
        """What could not be checked has not been proved: it counts as failed."""
        self.add(name, False, "", f"not checked, because {because}")

    def done(self) -> tuple[Check, ...]:
        """All of them."""
        return tuple(self._checks)
