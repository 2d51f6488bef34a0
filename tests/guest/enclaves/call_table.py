# SPDX-License-Identifier: GPL-2.0-or-later
"""The runtime's table of system calls (`calls.def`), and how `caller.c` makes each that the table describes."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import NamedTuple

from tests.guest.enclaves.hostile_answers import PATH

__all__ = ["ROWS", "Described", "Row", "described"]

_LINE = re.compile(r"^(CALL|OWN)\((\d+), (\w+), \w+, (\w+), (.*)\)$", re.MULTILINE)
_ARGUMENT = re.compile(r"(\w+)(?:\(([^)]*)\))?")
_INTS = {"I", "U", "FD", "AT"}


class Row(NamedTuple):
    """A line of the table."""

    number: int
    name: str
    result: str
    """Empty if the call has a handler of its own."""
    arguments: list[tuple[str, str]]
    """(kind, what stands in parentheses behind it)."""

    def is_int(self, argument: int) -> bool:
        """Does the lower half of the register count alone?"""
        return argument < len(self.arguments) and self.arguments[argument][0] in _INTS

    @property
    def has_ints(self) -> bool:
        return any(kind in _INTS for kind, _ in self.arguments)


def _rows() -> list[Row]:
    text = files("veil.guest.enclaves.runtime").joinpath("src", "calls.def").read_text()
    return [
        Row(int(number), name, how if macro == "CALL" else "", _ARGUMENT.findall(arguments))
        for macro, number, name, how, arguments in _LINE.findall(text)
    ]


ROWS = _rows()


class Described(NamedTuple):
    """A call that is done outside as the table says."""

    number: int
    name: str
    result: str
    arguments: list[str]
    """As words for the caller."""


def described() -> list[Described]:
    """All of them."""
    found = []
    for row in ROWS:
        if not row.result:
            continue
        counts = ("IN_N", "OUT_N", "PART_IN")
        counting = {int(values.split(",")[0]) for kind, values in row.arguments if kind in counts}
        words = []
        for at, (kind, values) in enumerate(row.arguments):
            known = {
                "N": "0", "FD": "1", "AT": "-100", "READ_PATH": PATH, "WRITE_NAME": PATH, "WRITE_PATH": PATH,
                "STRING": PATH, **dict.fromkeys("VIU", "2" if at in counting else "0"),
            }  # fmt: skip
            words.append(known.get(kind) or f"@{int(values.split(',')[-1]) * (2 if '_' in kind else 1)}")
        found.append(Described(row.number, row.name, row.result, words))
    return found
