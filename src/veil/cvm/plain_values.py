# SPDX-License-Identifier: GPL-2.0-or-later
"""Values as JSON and back: bytes, dictionaries with any keys, and dataclasses, which come back checked by their types.

What comes back was read from a file that anybody may have written.
"""

from __future__ import annotations

import base64
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

__all__ = ["PlainValueError", "from_plain", "to_plain", "typed"]

_BITS = 64
_MAX_ITEMS = 1 << 16
_MAX_CHARACTERS = 1 << 16
#: of values whose type only their owner knows
_DEPTH = 8


class PlainValueError(ValueError):
    """A value is not what it should be; the message says which."""


def to_plain(value: Any) -> Any:
    """For `json.dumps`. A dataclass is a dictionary of its fields; names come in order, so equal values look equal."""
    if isinstance(value, bytes | bytearray):
        return {"base64": base64.b64encode(value).decode()}
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain({item.name: getattr(value, item.name) for item in fields(value)})
    if isinstance(value, Mapping):
        items = sorted(value.items()) if all(type(key) is str for key in value) else value.items()
        return {"map": [[to_plain(key), to_plain(item)] for key, item in items]}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def from_plain(value: Any) -> Any:
    """What `to_plain` was given, with lists for tuples and dictionaries for dataclasses (see `typed`).

    Raises LookupError, TypeError, ValueError or RecursionError if `to_plain` never made it.
    """
    if isinstance(value, dict):
        if "base64" in value:
            return base64.b64decode(value["base64"], validate=True)
        return {from_plain(key): from_plain(item) for key, item in value["map"]}
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    return value


def typed(value: Any, kind: Any, where: str) -> Any:
    """`value` of `from_plain` as a `kind`: a dataclass, tuple, mapping with names as keys, number, text, bytes, union.

    A dataclass must have all of its fields and no other; numbers have at most 64 bits. Raises PlainValueError, and
    whatever the dataclass itself raises.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        _require_simple(value, where, 0)
        return value
    if is_dataclass(kind):
        return _dataclass(value, kind, where)
    if origin is types.UnionType or origin is typing.Union:
        if value is None and type(None) in arguments:
            return None
        (kind,) = (item for item in arguments if item is not type(None))
        return typed(value, kind, where)
    if origin is tuple:
        return _tuple(value, arguments, where)
    if origin is not None and issubclass(origin, Mapping):
        _require(value, dict, where)
        for key in value:
            _require_simple(key, f"a name in {where}", _DEPTH)
            _require(key, str, f"a name in {where}")
        return {key: typed(item, arguments[1], f"{where}[{key!r:.40}]") for key, item in value.items()}
    _require(value, kind, where)
    _require_simple(value, where, _DEPTH)
    return value


def _dataclass(value: Any, kind: Any, where: str) -> Any:
    _require(value, dict, where)
    hints, names = typing.get_type_hints(kind), [item.name for item in fields(kind)]
    unknown = [key for key in value if key not in names]
    if unknown:
        raise PlainValueError(f"{where} has {unknown[0]!r:.40}, which this version does not know")
    missing = [name for name in names if name not in value]
    if missing:
        raise PlainValueError(f"{where} lacks {missing[0]}")
    return kind(**{name: typed(value[name], hints[name], f"{where}.{name}") for name in names})


def _tuple(value: Any, arguments: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    _require(value, list, where)
    if arguments[-1] is Ellipsis:
        arguments = arguments[:1] * len(value)
    if len(arguments) != len(value):
        raise PlainValueError(f"{where} has {len(value)} items, not {len(arguments)}")
    return tuple(typed(item, kind, where) for item, kind in zip(value, arguments, strict=True))


def _require(value: Any, kind: Any, where: str) -> None:
    if type(value) is not kind:
        raise PlainValueError(f"{where} is of the type {type(value).__name__}, not {kind.__name__}")
    if kind in (list, dict) and len(value) > _MAX_ITEMS:
        raise PlainValueError(f"{where} has {len(value)} items, at most {_MAX_ITEMS} are allowed")


def _require_simple(value: Any, where: str, depth: int) -> None:
    if type(value) is int:
        if value.bit_length() > _BITS:
            raise PlainValueError(f"{where} is a number of {value.bit_length()} bits")
    elif type(value) is str:
        if len(value) > _MAX_CHARACTERS:
            raise PlainValueError(f"{where} has {len(value)} characters, at most {_MAX_CHARACTERS} are allowed")
    elif type(value) in (list, dict) and depth < _DEPTH:
        _require(value, type(value), where)
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            _require_simple(item, where, depth + 1)
    elif value is not None and type(value) not in (bool, float, bytes):
        raise PlainValueError(f"{where} is of the type {type(value).__name__}, or nested too deeply")
