# SPDX-License-Identifier: GPL-2.0-or-later
"""What several parts of Veil must know is written down once."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import veil

ROOT = Path(veil.__file__).parent
#: units, buffers that need not be of one size, and names of different things that happen to be as large
NOT_FACTS = frozenset(
    [
        "NS",
        "MIB",
        "ONE",
        "U16",
        "U32",
        "U64",
        "MASK_32",
        "U64_MAX",
        "LARGE",
        "CHUNK",
        "PIECE",
        "MAX_TEXT",
        "BITS",
        "HEADER",
        "KEY_BYTES",
        "DIGEST",
    ]
)
SMALLEST = 32


def constants(path: Path) -> Iterator[tuple[str, object]]:
    """(name, value) of what a module defines by itself: numbers that are not small, texts, layouts."""
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple):
                    pairs = list(zip(target.elts, statement.value.elts, strict=True))
                else:
                    pairs = [(target, statement.value)]
                for name, value in pairs:
                    found = literal(value)
                    if isinstance(name, ast.Name) and found is not None:
                        yield name.id.removeprefix("_"), found


def literal(value: ast.expr) -> object:
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "struct.Struct":
        return ast.unparse(value)
    try:
        found = eval(compile(ast.Expression(value), "", "eval"), {"__builtins__": {}})
    except Exception:
        return None
    return found if isinstance(found, str | bytes | tuple) or (type(found) is int and found >= SMALLEST) else None


def test_no_part_repeats_what_another_one_defines() -> None:
    where: defaultdict[tuple[str, object], set[str]] = defaultdict(set)
    for path in ROOT.rglob("*.py"):
        name = path.relative_to(ROOT)
        for constant in constants(path):
            if constant[0] not in NOT_FACTS:
                where[constant].add(name.parts[0])
    repeated = {constant: sorted(parts) for constant, parts in where.items() if len(parts) > 1}
    assert not repeated, "both sides take it from `formats`, or from `snp`"
