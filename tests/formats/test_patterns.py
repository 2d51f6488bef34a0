# SPDX-License-Identifier: GPL-2.0-or-later
"""Regular expressions that others' text is held against take a time that grows with its length, and no faster."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import veil

SOURCES = Path(next(iter(veil.__path__)))
PLACES = ("remote", "formats", "cli", "host")
ANCHORED = {"match", "fullmatch"}
UNBOUNDED = 1000
"""this many repetitions, or more"""


def _patterns() -> Iterator[tuple[str, bool, ast.expr]]:
    """Where, whether matching begins at one place only, the pattern."""
    for place in PLACES:
        for path in sorted((SOURCES / place).rglob("*.py")):
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("re."):
                    yield f"{path.relative_to(SOURCES)}:{node.lineno}", _uses(tree, node) <= ANCHORED, node.args[0]


def _uses(tree: ast.AST, call: ast.Call) -> set[str]:
    """The functions by which a pattern is held against text; of a compiled one, all those of its name."""
    function = ast.unparse(call.func).removeprefix("re.")
    if function != "compile":
        return {function}
    assigned = (node for node in ast.walk(tree) if isinstance(node, ast.Assign) and node.value is call)
    names = {ast.unparse(node.targets[0]) for node in assigned}
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {node.attr for node in found if ast.unparse(node.value) in names} or {"unknown"}


def _unbounded(pattern: str | bytes) -> int:
    """How many repetitions without a bound there are; those in another repetition count as many."""

    def count(items: Any, within: bool) -> int:
        found = 0
        for operation, argument in items:
            name = str(operation)
            if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
                _, most, inner = argument
                endless = int(most) >= UNBOUNDED
                found += (10 if within else 1) * endless + count(inner, within or int(most) > 1)
            elif name == "SUBPATTERN":
                found += count(argument[-1], within)
            elif name == "BRANCH":
                found += sum(count(branch, within) for branch in argument[1])
            elif name in ("ASSERT", "ASSERT_NOT"):
                found += count(argument[1], within)
        return found

    return count(re._parser.parse(pattern), False)  # type: ignore[attr-defined]


def test_patterns_are_linear() -> None:
    """One endless repetition at the most, and none where matching is tried everywhere."""
    seen = 0
    for where, anchored, pattern in _patterns():
        assert isinstance(pattern, ast.Constant), f"{where}: not written out"
        assert isinstance(pattern.value, str | bytes)
        assert _unbounded(pattern.value) <= anchored, f"{where}: {pattern.value!r}"
        seen += 1
    assert seen >= 5


@pytest.mark.parametrize(
    ("pattern", "due"),
    [(r"a{1,20}b?", 0), (r"[ab]+", 1), (r"\w+\d+", 2), (r"(a+)+", 11), (r"(?:a{1,9}b*)*", 11), (r"(?:a|b*)c", 1)],
)
def test_the_count(pattern: str, due: int) -> None:
    assert _unbounded(pattern) == due
