# SPDX-License-Identifier: GPL-2.0-or-later
"""What the documents name exists: files, and modules with what is in them."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvm_unit_tests.adaptations import ADAPTATIONS
from tests.e2e.shielded_programs import EXERCISES, LONG_EXERCISES

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACES = ("src", "tests", "bench", "docs", "fuzz", "kvm_unit_tests", ".ci")

_FILE = re.compile(r"`([\w./-]+\.(?:py|c|h|S|rules|md))`")
_BELOW = re.compile(r"(?<![\w./-])((?:src|docs|tests|bench|fuzz|kvm_unit_tests)/[\w./-]*\w)")
_MODULE = re.compile(r"`(veil(?:\.\w+)+)`")
#: Files of QEMU's and of kvm-unit-tests'.
_ELSEWHERE = {"accel/tcg/cputlb.c"} | {item.file for item in ADAPTATIONS}
#: The driver, the agent's port, and attributes of exported records: dots, but no modules.
_OTHER_NAMES = {"veil.ko", "veil.agent", "veil.log", "veil.log.sequence", "veil.log.record"}


def _lines() -> Iterator[tuple[str, str]]:
    for document in DOCUMENTS:
        for number, line in enumerate(document.read_text().splitlines(), 1):
            yield f"{document.name}:{number}", line


@functools.cache
def _ends() -> frozenset[tuple[str, ...]]:
    """Of the paths of all files and folders in the places."""
    paths = [(place, *found.relative_to(ROOT / place).parts) for place in PLACES for found in (ROOT / place).rglob("*")]
    return frozenset(parts[at:] for parts in paths for at in range(1, len(parts)))


def _exists(name: str) -> bool:
    """A path from the root, or the end of one: `monitor/boot.py`. NAME stands for any: what is above it must exist."""
    name = name.partition("/NAME")[0]
    return (ROOT / name).exists() or Path(name).parts in _ends()


def _resolves(name: str) -> bool:
    """A module, or a module's attribute."""
    parts = name.split(".")
    for length in range(len(parts), 1, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        rest = parts[length:]
        return not rest or (len(rest) == 1 and hasattr(found, rest[0]))
    return False


@pytest.mark.parametrize("name", ["monitor/launch.py", "veil/monitor", "docs/none.md", "boot.pyc"])
def test_what_does_not_exist_would_be_seen(name: str) -> None:
    assert _exists(name) == (name == "veil/monitor")


def test_files_exist() -> None:
    named = [(place, name) for place, line in _lines() for name in _FILE.findall(line) + _BELOW.findall(line)]
    assert len(named) > 100
    assert [(place, name) for place, name in named if name not in _ELSEWHERE and not _exists(name)] == []


def test_no_merge_is_half_done() -> None:
    for where, line in _lines():
        assert not re.match(r"(<{7}|>{7}) |={7}$", line), where


def test_modules_exist() -> None:
    named = [(place, name) for place, line in _lines() for name in _MODULE.findall(line)]
    assert len(named) > 10
    assert not any(map(_resolves, ("veil.monitor.nothing", "veil.formats.roles.nothing")))
    assert [(place, name) for place, name in named if name not in _OTHER_NAMES and not _resolves(name)] == []


def test_the_list_of_shielded_programs_is_what_tests_run() -> None:
    """docs/enclaves.md says "yes" of what has an exercise, or is a test's own program, and of no other."""
    text = (ROOT / "docs" / "enclaves.md").read_text()
    table = text.split("### Programs that were tried", 1)[1].split("\n### ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")][
        1:
    ]
    shielded = {cells[0]: cells[1] for cells in rows if cells[2].startswith("yes")}
    names = {Path(program.path).name for item in (*EXERCISES, *LONG_EXERCISES) for program in item.programs.values()}
    said = {name for name in names for row in shielded if re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", row)}
    assert said == names
    for row, what in shielded.items():
        assert "programs.py" in what or any(
            re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", row) for name in names
        ), row
    in_each_run = {Path(program.path).name for item in EXERCISES for program in item.programs.values()}
    assert (len(in_each_run), "ten programs in\n`make test`" in table) == (10, True)


def test_the_demonstration_attests_the_cvm_that_it_has_booted() -> None:
    """What README shows of it is of one launch."""
    text = (ROOT / "README.md").read_text()
    (whole,) = re.findall(r"^launch digest ([0-9a-f]{96})$", text, re.MULTILINE)
    attested = re.findall(r"the launch digest ([0-9a-f]{24})\.\.\. is the expected one", text)
    assert attested == [whole[:24]]
