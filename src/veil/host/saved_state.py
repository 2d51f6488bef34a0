# SPDX-License-Identifier: GPL-2.0-or-later
"""What of the host is in a snapshot, and a check of what comes back: anybody may have written the file.

One pair of words for one act: state is dumped and loaded; files, and programs that the machine hosts, are saved and
restored.
"""

from __future__ import annotations

from typing import Any, Protocol

from veil.host.errors import HostError

__all__ = ["Dumpable", "require_like"]

_BITS = 64
_DEPTH = 16


class Dumpable(Protocol):
    """A part of the host that a snapshot has. Both only while no VCPU runs.

    What stands here holds for every `dump` and `load` that says nothing of its own.
    """

    def dump(self) -> dict[str, Any]:
        """All that `load` needs, of plain values (None, bool, int, str, bytes, list, dict); nothing changes."""

    def load(self, state: dict[str, Any], /) -> None:
        """Be as the one that was dumped; on a new object, before it is used. The values may be anybody's."""


def require_like(value: Any, template: Any, where: str = "host") -> None:
    """Is `value` such a state as `template`, which a host that just began has? Raises HostError, which says where not.

    The same types everywhere; whole numbers that a register can hold; no key too few or too many where both have the
    same kind of dictionary. Lists may be longer or shorter, with items like the template's first. What values mean is
    for whom they belong to.
    """
    _check(value, template, where, 0)


def _check(value: Any, template: Any, where: str, depth: int) -> None:
    if depth > _DEPTH:
        raise HostError(f"snapshot: {where} is nested too deeply")
    if type(value) is not type(template) and not (template is None and _is_plain(value)):
        raise HostError(f"snapshot: {where} is of another type ({type(value).__name__}) than it should be")
    if isinstance(value, dict):
        _check_dictionary(value, template if isinstance(template, dict) else {}, where, depth)
    elif isinstance(value, list):
        known = template if isinstance(template, list) else []
        for number, item in enumerate(value):
            like = known[number] if len(known) == len(value) else known[0] if known else None
            _check(item, like, f"{where}[{number}]", depth + 1)
    elif type(value) is int and value.bit_length() > _BITS:
        raise HostError(f"snapshot: {where} is a number of {value.bit_length()} bits")


def _check_dictionary(value: dict[Any, Any], template: dict[Any, Any], where: str, depth: int) -> None:
    missing = template.keys() - value.keys()
    if missing:
        raise HostError(f"snapshot: {where} lacks {sorted(map(str, missing))[0][:40]}")
    for key, item in value.items():
        if type(key) not in (str, int):
            raise HostError(f"snapshot: {where} has a key that is neither a name nor a number")
        _check(item, template.get(key), f"{where}.{str(key)[:40]}", depth + 1)


def _is_plain(value: Any) -> bool:
    return value is None or type(value) in (bool, int, str, bytes, list, dict)
