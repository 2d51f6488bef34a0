# SPDX-License-Identifier: GPL-2.0-or-later
"""What VeilS-KCI tells: its words in the protected log, and its status for remote users. All of it is JSON."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from veil.formats.errors import FormatError
from veil.formats.kci_settings import HALT, OFF, ON
from veil.formats.numbers import u64

__all__ = ["CodeEvent", "CodeWord", "KciStatus", "ModuleStatus", "UserCall"]


class UserCall(enum.IntEnum):
    """What remote users ask."""

    STATUS = 0
    """-> `KciStatus`. Readers and owners"""


class CodeEvent(enum.StrEnum):
    """What a word in the log is about."""

    LOCKED = "locked"
    """From here on VMPL 3 runs no supervisor code but verified code."""
    NOT_LOCKED = "not locked"
    """Lock-down was refused."""
    MODULE_ADMITTED = "module admitted"
    MODULE_REFUSED = "module refused"
    MODULE_GONE = "module gone"
    EXCEPTION = "exception"
    """The kernel wrote read-only data that the policy lets it write."""
    VIOLATION = "violation"
    """The kernel tried what verified code does not do."""


_TROUBLE = frozenset({CodeEvent.NOT_LOCKED, CodeEvent.MODULE_REFUSED, CodeEvent.VIOLATION})


_ENCODER = json.JSONEncoder(default=vars)


class _Json:
    """Dataclasses of plain values, as they travel."""

    def pack(self) -> bytes:
        """JSON."""
        return _ENCODER.encode(vars(self)).encode()

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises FormatError."""
        try:
            found = json.loads(data)
            return cls(**found)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise FormatError(f"not VeilS-KCI's {cls.__name__}: {str(error)[:100]}") from error


@dataclass(frozen=True)
class CodeWord(_Json):
    """An entry of VeilS-KCI in the protected log. Raises FormatError."""

    event: CodeEvent
    words: str
    """One line: what, where, why."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """The same for programs: address, symbol, gpa, vcpu, rip, bytes, name, hash, signer: those that there are."""

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "event", CodeEvent(self.event))
        except ValueError as error:
            raise FormatError(f"VeilS-KCI has no word {self.event!r:.40}") from error
        if not isinstance(self.words, str) or not isinstance(self.detail, dict):
            raise FormatError("a word of VeilS-KCI's is a line of text, with details by name")

    @property
    def trouble(self) -> bool:
        """Asks for somebody's attention."""
        return self.event in _TROUBLE


@dataclass(frozen=True)
class ModuleStatus:
    """A module that runs."""

    number: int
    name: str
    version: str
    signer: str
    """The subject of the certificate; empty if the policy lists the file's hash."""
    sha256: str
    """Of the whole file."""
    text: int
    """Bytes of its code."""
    live: bool
    """Its init function has returned."""

    def __post_init__(self) -> None:
        u64(self.number)
        u64(self.text)
        _check(isinstance(self.live, bool))
        _check(all(isinstance(item, str) for item in (self.name, self.version, self.signer, self.sha256)))


@dataclass(frozen=True)
class KciStatus(_Json):
    """Where the kernel's code stands."""

    mode: str
    """of `KciSettings`"""
    locked_ns: int | None
    """when it was locked down, by the machine's time stamp counter; None if it is not"""
    text_pages: int = 0
    """of the kernel's own, of 4 KiB"""
    read_only_pages: int = 0
    explained: Mapping[str, int] = field(default_factory=dict)
    """sites of the kernel's text that were not as measured at lock-down, by kind"""
    patches: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """stores that were allowed since, by kind and symbol; of many symbols those with the most, the rest as "others" """
    violations: int = 0
    refused: int = 0
    """modules"""
    modules: Sequence[ModuleStatus] = ()
    words: Sequence[str] = ()
    """the newest ones about what was refused"""
    writable: Mapping[str, int] = field(default_factory=dict)
    """the policy's exceptions: read-only data that the kernel may write, and how often it did"""
    modules_left_out: int = 0
    """older ones that run, too; the log has them"""

    def __post_init__(self) -> None:
        _check(self.mode in (OFF, ON, HALT))
        times = () if self.locked_ns is None else (self.locked_ns,)
        for number in (
            *times, self.text_pages, self.read_only_pages, self.violations, self.refused, self.modules_left_out,
        ):  # fmt: skip
            u64(number)
        _check(isinstance(self.patches, Mapping))
        for counts in (self.explained, self.writable, *self.patches.values()):
            _check(isinstance(counts, Mapping))
            for count in counts.values():
                u64(count)
        _check(isinstance(self.words, list | tuple) and all(isinstance(item, str) for item in self.words))
        _check(isinstance(self.modules, list | tuple))
        modules = (item if isinstance(item, ModuleStatus) else ModuleStatus(**item) for item in self.modules)
        object.__setattr__(self, "modules", tuple(modules))
        object.__setattr__(self, "words", list(self.words))


def _check(sound: object) -> None:
    if not sound:
        raise FormatError("a part of VeilS-KCI's status is of another type")
