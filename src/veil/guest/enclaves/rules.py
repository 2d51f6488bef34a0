# SPDX-License-Identifier: GPL-2.0-or-later
"""What a manifest alone decides of an enclave: the builder measures it, and a reader of an image compares it."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from veil.formats.enclaves import ARENA
from veil.formats.page_sizes import PAGE_SIZE, page_up
from veil.guest.enclaves.calls import allowed_numbers, system_calls
from veil.guest.enclaves.manifest import SIGNALS, Manifest, secret_path

__all__ = ["ConfigFlag", "ConfigRule", "RuleKind", "Rules", "brk_end"]


class ConfigFlag(enum.IntFlag):
    """What the manifest switches on."""

    NONE = 0
    ARGUMENTS_OUTSIDE = 1
    END_ON_UNSUPPORTED = 2
    SIGNALS_OUTSIDE = 4


class RuleKind(enum.IntEnum):
    """How files below a path are treated. Trusted files are no rules: each is named with its hashes."""

    PASS = 2
    READ = 3
    SEALED = 4
    SECRET = 5


@dataclass(frozen=True)
class ConfigRule:
    """Of a path; with `tree` of all below it too."""

    kind: RuleKind
    path: str
    tree: bool

    def __str__(self) -> str:
        return f"{self.kind.name.lower()} {self.path}{' and all below' if self.tree else ''}"


@dataclass(frozen=True)
class Rules:
    """All that the runtime is told by way of the manifest."""

    flags: ConfigFlag = ConfigFlag.NONE
    stack_bytes: int = 0
    pool_pages: int = 0
    slots: int = 0
    directory: str = "/"
    calls: frozenset[int] = frozenset()
    signals: frozenset[int] = frozenset()
    files: tuple[ConfigRule, ...] = ()
    arguments: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    """NAME=VALUE."""
    passed: tuple[str, ...] = ()
    """Names of variables that come from outside; "*": all."""
    started: tuple[str, ...] = ()
    """Paths of programs outside that it may start."""

    @classmethod
    def of(cls, manifest: Manifest) -> Rules:
        """What follows from the manifest."""
        return cls(
            flags=_flags(manifest),
            stack_bytes=page_up(manifest.stack),
            pool_pages=manifest.memory // PAGE_SIZE,
            slots=manifest.threads,
            directory=manifest.directory,
            calls=allowed_numbers(manifest.allow, manifest.deny),
            signals=frozenset(SIGNALS[name] for name in manifest.signals),
            files=tuple(_file_rules(manifest)),
            arguments=manifest.arguments,
            environment=tuple(f"{name}={value}" for name, value in sorted(manifest.environment.items())),
            passed=manifest.environment_outside,
            started=manifest.programs,
        )

    def difference(self, given: Rules) -> str | None:
        """In words: the first thing that is not as `given` has it, None if all is."""
        for field, words in _WORDS.items():
            if getattr(self, field) == getattr(given, field):
                continue
            found, wanted = _texts(field, getattr(self, field)), _texts(field, getattr(given, field))
            more = [text for text in found if text not in wanted]
            less = [text for text in wanted if text not in found]
            parts = [f"{_shown(more)} more" if more else "", f"{_shown(less)} missing" if less else ""]
            return f"{words}: {', '.join(filter(None, parts)) or 'others'}"
        return None


_WORDS = {
    "flags": "what comes from outside, and what a call that is not supported ends",
    "stack_bytes": "the bytes of the stack",
    "pool_pages": "the pages of memory",
    "slots": "the number of threads",
    "directory": "the directory",
    "calls": "the system calls that are allowed",
    "signals": "the signals from outside",
    "files": "the rules for files",
    "arguments": "the arguments",
    "environment": "the environment",
    "passed": "the variables from outside",
    "started": "the programs outside",
}


def brk_end(start: int, manifest: Manifest) -> int:
    """How far a program may move its break, which is at `start` first."""
    # Behind the arena's start there is no room for it: such a program has no brk, and its C library uses mmap.
    return max(start, min(start + manifest.memory, ARENA))


def _flags(manifest: Manifest) -> ConfigFlag:
    flags = ConfigFlag.NONE
    flags |= ConfigFlag.ARGUMENTS_OUTSIDE if manifest.arguments_outside else ConfigFlag.NONE
    flags |= ConfigFlag.END_ON_UNSUPPORTED if manifest.end_on_unsupported else ConfigFlag.NONE
    flags |= ConfigFlag.SIGNALS_OUTSIDE if manifest.signals else ConfigFlag.NONE
    return flags


def _file_rules(manifest: Manifest) -> Iterable[ConfigRule]:
    kinds = {RuleKind.READ: manifest.read, RuleKind.PASS: manifest.passed, RuleKind.SEALED: manifest.sealed}
    for kind, paths in kinds.items():
        for path in paths:
            yield ConfigRule(kind, path.rstrip("/") or "/", path.endswith("/"))
    for name in manifest.secrets:
        yield ConfigRule(RuleKind.SECRET, secret_path(name), False)


def _texts(field: str, value: object) -> list[str]:
    if isinstance(value, ConfigFlag):
        return [flag.name or "" for flag in ConfigFlag if flag & value]
    if isinstance(value, frozenset):
        names = {call.number: call.name for call in system_calls()}
        if field == "signals":
            names = {number: name for name, number in SIGNALS.items()}
        return [names.get(number, str(number)) for number in sorted(value)]
    return [str(item) for item in value] if isinstance(value, tuple) else [str(value)]


def _shown(texts: list[str]) -> str:
    words = ", ".join(map(repr, texts[:3]))
    return f"{words:.200}{', ...' if len(texts) > 3 else ''}"
