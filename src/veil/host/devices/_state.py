# SPDX-License-Identifier: GPL-2.0-or-later
"""Saving and loading what a device holds as plain integers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["checked_int", "load_integers", "save_integers"]


def save_integers(device: object, names: Iterable[str]) -> dict[str, Any]:
    """The named attributes (a leading underscore is not part of the saved name)."""
    return {name.lstrip("_"): getattr(device, name) for name in names}


def load_integers(device: object, names: Iterable[str], state: dict[str, Any]) -> None:
    """Set the named attributes, all or none; booleans stay booleans."""
    values = {name: checked_int(state[name.lstrip("_")]) for name in names}
    for name, value in values.items():
        setattr(device, name, bool(value) if isinstance(getattr(device, name), bool) else value)


def checked_int(value: object) -> int:
    """An integer out of a snapshot."""
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is not an integer")
    return int(value)
