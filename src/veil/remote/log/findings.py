# SPDX-License-Identifier: GPL-2.0-or-later
"""What looks wrong in a verified log: findings, and how times are written."""

from __future__ import annotations

import dataclasses
import enum
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["Finding", "FindingKind", "Findings", "claimed_text", "machine_text"]

_NS = 1_000_000_000
_LISTED, _NOTES_LISTED = 100, 10


class FindingKind(enum.Enum):
    """What was found."""

    MISSING = "missing"
    """serial numbers of the kernel that never came"""
    IN_FLIGHT = "in-flight"
    """the same at the end of the log: they may still come"""
    LATE = "late"
    """a serial number that others overtook by far"""
    REPEATED = "repeated"
    """a serial number that was used for two events"""
    WENT_BACK = "went-back"
    """a serial number from long ago, or from before the first"""
    SILENCE = "silence"
    """no sign of life for too long"""
    NO_HEARTBEATS = "no-heartbeats"
    CLOCK = "clock"
    """the kernel's times moved against the machine's"""
    MACHINE_TIME = "machine-time"
    """the service's own times went back"""
    AUDIT_OFF = "audit-off"
    AUDIT_ON = "audit-on"
    NOT_RECORDING = "not-recording"
    """rules were sent, and the kernel records nothing"""
    RULES = "rules"
    """the audit rules or settings were changed"""
    CODE = "code"
    """code that the kernel was about to load, as it said"""
    CODE_INTEGRITY = "code-integrity"
    """what VeilS-KCI says: locked down or not, what was refused"""
    MODULES = "modules"
    """modules that it admitted, and that went"""
    UNREADABLE = "unreadable"
    RESUMED = "resumed"
    DROPPED = "dropped"
    BEGINS_LATE = "begins-late"
    """the entries before were acknowledged before this user came"""


@dataclass(frozen=True)
class Finding:
    """One thing that was found, in words."""

    kind: FindingKind
    entry: int
    """the number of the entry with which it shows; for silence, the last sign of life"""
    time_ns: int
    """the machine's time of that entry"""
    claimed_ms: int | None
    """milliseconds since 1970: the last time that the kernel had claimed by then"""
    words: str
    trouble: bool
    """asks for somebody's attention; others only help to read the log"""
    distrust: bool
    """the kernel's word is not trusted from here on"""

    @property
    def distrusted_from(self) -> int:
        """The number of the first entry that this is a reason to distrust."""
        return self.entry + (self.kind == FindingKind.SILENCE)

    def json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "kind": self.kind.value}


class Findings:
    """A list that a hostile kernel cannot make long: of each kind a given number of notes and one of trouble are kept,
    the rest is counted."""

    def __init__(self, untrusted_from: int | None = None) -> None:
        """`untrusted_from`: from this entry on the user trusts nothing anyway, and findings are not trouble."""
        self._untrusted_from = untrusted_from
        self.items: list[Finding] = []
        self.counts: dict[FindingKind, int] = {}
        self._apart: dict[tuple[FindingKind, bool], int] = {}
        self.first_distrusted: Finding | None = None
        self.trouble = 0

    def add(self, finding: Finding) -> None:
        """One more."""
        if self._untrusted_from is not None and finding.distrusted_from >= self._untrusted_from:
            finding = dataclasses.replace(finding, trouble=False)
        self.counts[finding.kind] = self.counts.get(finding.kind, 0) + 1
        # Apart, or many notes of a kind would crowd out what means trouble.
        apart = finding.kind, finding.trouble
        count = self._apart[apart] = self._apart.get(apart, 0) + 1
        self.trouble += finding.trouble
        first = self.first_distrusted
        if finding.distrust and (first is None or finding.distrusted_from < first.distrusted_from):
            self.first_distrusted = finding
            self._keep(finding)
        elif count <= (_LISTED if finding.trouble else _NOTES_LISTED):
            self._keep(finding)

    def _keep(self, finding: Finding) -> None:
        self.items.append(finding)

    def unlisted(self) -> Iterable[tuple[FindingKind, int]]:
        """Kinds of which there are more than are listed, and how many more."""
        listed: dict[FindingKind, int] = {}
        for item in self.items:
            listed[item.kind] = listed.get(item.kind, 0) + 1
        for kind, count in self.counts.items():
            if count > listed[kind]:
                yield kind, count - listed[kind]


def machine_text(time_ns: int) -> str:
    """The machine's time: seconds of its time stamp counter, which began with its launch."""
    return f"{time_ns / _NS:.3f} s"


def claimed_text(milliseconds: int | None) -> str:
    """What the kernel says that the time is; "-" if it said nothing."""
    if milliseconds is None:
        return "-"
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(milliseconds // 1000)) + f".{milliseconds % 1000:03} UTC"
    except (OverflowError, ValueError, OSError):
        return f"{milliseconds} ms"
