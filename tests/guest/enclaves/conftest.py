# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.guest.enclaves.native_runtime import ANYTHING, NativeRuntime
from veil.guest.enclaves.image import EnclaveImage

_CALLER = Path(__file__).parent / "caller.c"


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> NativeRuntime:
    """All processes of a run share what one has compiled."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "native"
    place.mkdir(exist_ok=True)
    return NativeRuntime(place)


@pytest.fixture(scope="module")
def image(native: NativeRuntime, tmp_path_factory: pytest.TempPathFactory) -> EnclaveImage:
    """Of a program that does the system calls which its arguments say: `caller.c` explains the words."""
    program = tmp_path_factory.mktemp("caller") / "caller"
    command = ["cc", "-O1", "-nostdlib", "-static", "-no-pie", "-ffreestanding", "-fno-stack-protector", "-w"]
    done = subprocess.run(
        [*command, "-mgeneral-regs-only", "-o", program, _CALLER], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return native.build(program, {**ANYTHING, "memory": "4M", "threads": 1})
