# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's state as JSON: bytes, and dictionaries with keys that are no strings."""

from __future__ import annotations

from typing import Any

__all__ = ["from_json", "to_json"]


def to_json(value: Any) -> Any:
    """For `json.dumps`."""
    if isinstance(value, bytes | bytearray):
        return {"hex": bytes(value).hex()}
    if isinstance(value, dict):
        return {"map": [[to_json(key), to_json(item)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def from_json(value: Any) -> Any:
    """What `to_json` was given."""
    if isinstance(value, dict):
        if "hex" in value:
            return bytes.fromhex(value["hex"])
        return {from_json(key): from_json(item) for key, item in value["map"]}
    if isinstance(value, list):
        return [from_json(item) for item in value]
    return value
