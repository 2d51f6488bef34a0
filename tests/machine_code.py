# SPDX-License-Identifier: GPL-2.0-or-later
"""Machine code from GNU as, for guests of a few instructions."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path

__all__ = ["assemble"]


@functools.cache
def assemble(text: str, origin: int) -> bytes:
    """64-bit code in Intel syntax, linked to run at `origin`."""
    with tempfile.TemporaryDirectory() as directory:
        source, unit, flat = (Path(directory) / name for name in ("code.S", "code.o", "code.bin"))
        source.write_text(f".intel_syntax noprefix\n.code64\n.globl _start\n_start:\n{text}\n")
        commands: list[list[str | Path]] = [
            ["as", "--64", "-o", unit, source],
            ["ld", "-Ttext", hex(origin), "--oformat", "binary", "-o", flat, unit],
        ]
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        return flat.read_bytes()
