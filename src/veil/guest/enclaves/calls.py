# SPDX-License-Identifier: GPL-2.0-or-later
"""The runtime's system calls, as its own table (runtime/src/calls.def) has them: numbers, and groups for manifests."""

from __future__ import annotations

import functools
import re
from importlib.resources import files
from typing import NamedTuple

from veil.guest.errors import GuestImageError

__all__ = ["DEFAULT_GROUPS", "SystemCall", "allowed_numbers", "system_calls"]

#: What an enclave may do unless its manifest says more: all of it is bounded by what the manifest says of files.
DEFAULT_GROUPS = ("base", "files", "memory", "signals", "threads", "time")

_LINE = re.compile(r"^(?:CALL|OWN)\((\d+), (\w+), (\w+), ", re.MULTILINE)


class SystemCall(NamedTuple):
    """One that the runtime knows."""

    number: int
    name: str
    group: str


@functools.cache
def system_calls() -> tuple[SystemCall, ...]:
    """All of them, by number."""
    text = files("veil.guest.enclaves.runtime").joinpath("src", "calls.def").read_text()
    return tuple(SystemCall(int(number), name, group) for number, name, group in sorted(_LINE.findall(text)))


def allowed_numbers(allow: tuple[str, ...], deny: tuple[str, ...]) -> frozenset[int]:
    """Numbers of the default groups and of what `allow` names (groups or calls), without what `deny` names.

    Raises GuestImageError for a name that is neither.
    """
    wanted = frozenset().union(*map(_numbers, (*DEFAULT_GROUPS, *allow)))
    return wanted - frozenset().union(*map(_numbers, deny))


def _numbers(name: str) -> frozenset[int]:
    found = frozenset(call.number for call in system_calls() if name in (call.name, call.group))
    if not found:
        groups = ", ".join(sorted({call.group for call in system_calls()}))
        raise GuestImageError(
            f"calls: {name!r} is no system call that the runtime has, and no group of them ({groups})"
        )
    return found
