# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/bring-your-own-image.md: its commands are ones, and the digest that it promises is printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from veil.cli.main import veil
from veil.guest.igvm.file import Context, open_igvm

_PAGE = Path(__file__).parents[1] / "docs" / "bring-your-own-image.md"
_COMMANDS = [line for line in _PAGE.read_text().splitlines() if line.startswith("veil ")]


@pytest.mark.parametrize("line", _COMMANDS)
def test_commands_are_understood(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    command = veil.get_command(click.Context(veil), name)
    assert command is not None
    parsed: Any = command.make_context(name, list(arguments))
    for option in ("firmware", "igvm"):
        assert bool(parsed.params.get(option)) == (f"--{option}" in line)


def test_the_igvm_file_to_begin_with_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = [line for line in _PAGE.read_text().splitlines() if line.startswith("python -c ")]
    monkeypatch.chdir(tmp_path)
    exec(shlex.split(line)[2], {})
    assert {item.vp_index for item in open_igvm(Path("monitor.igvm")).items if isinstance(item, Context)} == {0}


@pytest.mark.e2e
def test_the_digest_is_printed() -> None:
    (line,) = [line for line in _COMMANDS if line.startswith("veil measure --no-monitor --firmware")]
    done = CliRunner().invoke(veil, shlex.split(line)[1:], catch_exceptions=False)
    assert done.exit_code == 0
    assert len(bytes.fromhex(done.stdout.splitlines()[0])) == 48
    assert "kernel hashes" in done.output
    assert "ovmf-amdsev_" in done.output


def test_the_bare_metal_example_runs() -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", _PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert "Liar" in example
    exec(compile(example, str(_PAGE), "exec"), {"__name__": "example"})
