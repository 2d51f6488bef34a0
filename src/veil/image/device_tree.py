# SPDX-License-Identifier: GPL-2.0-or-later
"""Flattened device trees (Devicetree Specification 0.4, chapter 5): what a host may tell a guest of itself."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Node", "cells", "flattened"]

_MAGIC, _VERSION, _COMPATIBLE = 0xD00DFEED, 17, 16
_BEGIN_NODE, _END_NODE, _PROPERTY, _END = 1, 2, 3, 9
_HEADER = struct.Struct(">10I")
#: of the list of reserved memory, which has nothing but its end
_NO_RESERVATIONS = bytes(16)


@dataclass(frozen=True)
class Node:
    """Properties and nodes by name."""

    properties: Mapping[str, bytes]
    nodes: Mapping[str, Node] = field(default_factory=dict)


def cells(*values: int) -> bytes:
    """Numbers of 32 bits."""
    return struct.pack(f">{len(values)}I", *values)


def flattened(root: Node) -> bytes:
    """The tree as one block."""
    strings: dict[str, int] = {}
    structure = _node("", root, strings) + cells(_END)
    names = b"".join(name.encode() + b"\0" for name in strings)
    start = _HEADER.size + len(_NO_RESERVATIONS)
    end = start + len(structure)
    header = _HEADER.pack(
        _MAGIC, end + len(names), start, end, _HEADER.size, _VERSION, _COMPATIBLE, 0, len(names), len(structure)
    )
    return header + _NO_RESERVATIONS + structure + names


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _node(name: str, node: Node, strings: dict[str, int]) -> bytes:
    parts = [cells(_BEGIN_NODE), _padded(name.encode() + b"\0")]
    for key, value in node.properties.items():
        at = strings.setdefault(key, sum(len(known) + 1 for known in strings))
        parts += [cells(_PROPERTY, len(value), at), _padded(value)]
    parts += [_node(inner, child, strings) for inner, child in node.nodes.items()]
    return b"".join((*parts, cells(_END_NODE)))
