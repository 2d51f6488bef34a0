# SPDX-License-Identifier: GPL-2.0-or-later
"""In each of our C programs files stand in layers: whose functions a file calls does not call that file's.

Static names are a file's own affair. What a macro or a string says is not looked at.
"""

from __future__ import annotations

import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import veil

ROOT = Path(veil.__file__).parent
PROGRAMS = ["guest/agent/src", "guest/driver/src", "guest/enclaves/starter/src", "snp/engine"]

_SILENT = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', re.DOTALL)
#: a function with its body, or an object, at the left margin and not static
_FUNCTION = re.compile(r"^(?!static\b|typedef\b|extern\b)[A-Za-z_][\w \t\n*]*?\b(\w+)\([^;{}]*?\)\s*\{", re.MULTILINE)
_OBJECT = re.compile(
    r"^(?!static\b|typedef\b|extern\b)[A-Za-z_][\w \t*]*?\b(\w+)(?:\[[^\]]*\])*(?: = [^;]*)?;", re.MULTILINE
)


def calls(folder: Path) -> dict[str, set[str]]:
    """For each file those that define what it names."""
    texts = {path.relative_to(folder).as_posix(): _SILENT.sub(" ", path.read_text()) for path in folder.rglob("*.c")}
    defined = {
        name: file for file, text in texts.items() for kind in (_FUNCTION, _OBJECT) for name in kind.findall(text)
    }
    words = {file: set(re.findall(r"\w+", text)) for file, text in texts.items()}
    return {file: {defined[word] for word in words[file] & defined.keys()} - {file} for file in texts}


@pytest.mark.parametrize("program", PROGRAMS)
def test_there_is_no_circle_of_files(program: str) -> None:
    found = calls(ROOT / program)
    assert sum(map(len, found.values())) >= len(found) - 1, "the files of a program are held together by calls"
    list(TopologicalSorter(found).static_order())  # raises CycleError, which names the circle


def test_a_circle_is_found(tmp_path: Path) -> None:
    (tmp_path / "one.c").write_text("int first(void)\n{\n\treturn second();\n}\n")
    (tmp_path / "two.c").write_text("int table[] = { 1 };\n\nint second(void)\n{\n\treturn third();\n}\n")
    (tmp_path / "three.c").write_text("static int helper(void)\n{\n\treturn table[0];\n}\n\nint third(void)\n{\n}\n")
    assert calls(tmp_path) == {"one.c": {"two.c"}, "two.c": {"three.c"}, "three.c": {"two.c"}}
