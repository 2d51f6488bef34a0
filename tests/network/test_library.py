# SPDX-License-Identifier: GPL-2.0-or-later
"""Where libslirp and what it needs are found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from veil.network.slirp import load_library

_TRY = "import sys; from veil.network.slirp import load_library; print(load_library(sys.argv[1:]).answer())"


def _build(source: str, path: Path, *more: str) -> None:
    command = [
        "gcc",
        "-shared",
        "-fPIC",
        f"-Wl,-soname,{path.name}",
        "-x",
        "c",
        "-o",
        str(path),
        "-",
        "-x",
        "none",
        *more,
    ]
    subprocess.run(command, input=source.encode(), check=True)


def test_what_it_needs_is_found_beside_it(tmp_path: Path) -> None:
    """Each needs the next one, which no loader would find by itself."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    _build("int last(void) { return 41; }", other / "libveil-last.so.0")
    _build("int last(void); int middle(void) { return last() + 1; }", one / "libveil-middle.so.0",
           str(other / "libveil-last.so.0"))  # fmt: skip
    _build("int middle(void); int answer(void) { return middle(); }", one / "libslirp.so.0",
           "-Wl,--allow-shlib-undefined", str(one / "libveil-middle.so.0"))  # fmt: skip
    said = subprocess.run([sys.executable, "-c", _TRY, one, other], capture_output=True, text=True, check=True).stdout
    assert said == "42\n"
    with pytest.raises(OSError, match=r"^libveil-last\.so\.0: cannot open"):
        load_library([str(one)])
