# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest programs, built with the C compiler."""

from __future__ import annotations

import subprocess
from pathlib import Path

__all__ = ["build_program", "build_raw"]

_HERE = Path(__file__).parent


def build_program(name: str, directory: Path, *flags: str) -> Path:
    """A static executable for the guest."""
    out = directory / name
    subprocess.run(["cc", "-O2", "-static", "-Wall", *flags, "-o", out, _HERE / f"{name}.c"], check=True)
    return out


def build_raw(name: str, directory: Path, *, address: int, **defines: int) -> bytes:
    """Bare machine code, linked to run at `address`."""
    out = directory / f"{name}.bin"
    flags = ["-nostdlib", "-static", "-no-pie", f"-Wl,-Ttext={address:#x},--build-id=none,--oformat=binary"]
    values = [f"-D{key}={value:#x}" for key, value in defines.items()]
    subprocess.run(["cc", *flags, *values, "-o", out, _HERE / f"{name}.S"], check=True)
    return out.read_bytes()
