# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's C files stand in layers: who includes a file's header is not included by that file.

A file and its header count as one. What is called must have been declared, so includes are all that a file knows.
"""

from __future__ import annotations

import re
from graphlib import TopologicalSorter
from pathlib import Path

import veil.snp

ENGINE = Path(veil.snp.__file__).parent / "engine"
_INCLUDE = re.compile(r'^#include "(\w+)\.h"$', re.MULTILINE)


def _includes() -> dict[str, set[str]]:
    own = {path.stem for path in ENGINE.glob("*.[ch]")}
    found: dict[str, set[str]] = {name: set() for name in own}
    for path in ENGINE.glob("*.[ch]"):
        found[path.stem] |= (own & set(_INCLUDE.findall(path.read_text()))) - {path.stem}
    return found


def test_there_is_no_circle_of_files() -> None:
    includes = _includes()
    order = list(TopologicalSorter(includes).static_order())  # raises CycleError, which names the circle
    assert order.index("core") < order.index("exits") < order.index("mmu") < order.index("run") < order.index("vmrun")


def test_the_rmp_stands_alone() -> None:
    assert _includes()["rmp"] == set()
