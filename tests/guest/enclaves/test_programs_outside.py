# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs outside that an enclave starts: those that its manifest names, and what it is told of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.guest.enclaves.native_runtime import ANYTHING, Lie, NativeRuntime, compile_program
from tests.guest.enclaves.programs import OUTSIDE
from tests.services.enc.believing import believes_results
from veil.guest.enclaves.image import EnclaveImage

_NAMED = ["/bin/echo", "/bin/none", "/usr/bin/env", "/bin/sh", "/bin/sleep"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program(tmp_path_factory.mktemp("outside"), OUTSIDE, "-static", "-w")


@pytest.fixture(scope="module")
def image(native: NativeRuntime, program: Path) -> EnclaveImage:
    return native.build(program, {**ANYTHING, "programs": _NAMED})


def _lines(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    assert done.returncode == 0, done
    return done.stdout.decode().splitlines()


def test_arguments_and_status(native: NativeRuntime, image: EnclaveImage) -> None:
    done = native.run(image, "p", "echo")
    assert sorted(_lines(done)) == ["0", "ended 0", "hi there"]
    assert done.stderr == b""


def test_its_environment_is_what_the_program_gives(native: NativeRuntime, image: EnclaveImage) -> None:
    assert sorted(_lines(native.run(image, "p", "env", environment={"OTHER": "1"}))) == [
        "0",
        "GREETING=hello",
        "ended 0",
    ]


def test_what_the_child_does_before(native: NativeRuntime, image: EnclaveImage, tmp_path: Path) -> None:
    """Descriptors, their order, a directory: the child's alone."""
    file = tmp_path / "file"
    file.write_text("words\n")
    done = native.run(image, "p", "actions", str(file), str(tmp_path))
    assert _lines(done) == ["0", "words", str(tmp_path), "words", "0", "ended 300"]
    assert done.stderr.split() == [b"0", b"1", b"2", b"3", b"9"], "3 is the folder that ls reads"


def test_what_is_refused(native: NativeRuntime, image: EnclaveImage) -> None:
    done = native.run(image, "p", "refused")
    assert sorted(_lines(done)) == [
        "", "-1 Function not implemented", "No such file or directory", "Permission denied", "Success", "ended 0",
    ]  # fmt: skip
    assert done.stderr.splitlines() == [
        b"log: /bin/true is not started: the manifest does not name it",
        b"log: system call 56 (clone): an enclave cannot fork",
    ]


def test_nothing_is_started_by_default(native: NativeRuntime, program: Path) -> None:
    done = native.run(native.build(program, ANYTHING), "p", "echo")
    assert _lines(done)[0] == "38"
    assert done.stderr == b"log: system call 56 (clone): the manifest names no program that it may start\n"


def test_a_child_that_ends(native: NativeRuntime, image: EnclaveImage) -> None:
    """It shares the parent's memory; not its descriptors."""
    assert _lines(native.run(image, "p", "ends")) == ["1 2", "ended 700"]


def test_a_child_that_is_killed(native: NativeRuntime, image: EnclaveImage) -> None:
    assert _lines(native.run(image, "p", "kill")) == ["0", "1 2 15 17", "ended f"]


#: A program's words, what the kernel says, and why it cannot be.
PROGRAM_LIES = {
    "execve answers 0": ("echo", Lie(59, 0), b"the process of a program is said to be 0x0"),
    "execve answers too much": ("echo", Lie(59, 1 << 23), b"the process of a program is said to be"),
    "vfork answers no number": ("ends", Lie(59, -200), b"which no system call is"),
    "wait4 answers another process": ("echo", Lie(61, 1), b"no process that was waited for"),
    "wait4 answers no process": ("echo", Lie(61, 0), b"no process that was waited for"),
    "wait4 says that one has stopped": ("echo", Lie(61, None, put=((1, 0, 4, 0x137F),)), b"has the status 0x137f"),
    "wait4 says what is no status": ("echo", Lie(61, None, put=((1, 0, 4, 1 << 16),)), b"has the status 0x10000"),
    "wait4 tells of a time that is none": (
        "echo", Lie(61, None, put=((3, 8, 8, 1_000_000),)), b"what a process has used cannot be",
    ),
    "waitid says what is no signal": ("kill", Lie(247, None, put=((2, 24, 4, 65),)), b"has the status 0x41"),
    "waitid answers another process": ("kill", Lie(247, None, put=((2, 16, 4, 1),)), b"which was not waited for"),
    "waitid answers no process": ("kill", Lie(247, 0), b"which was not waited for"),
    "waitid answers a number": ("kill", Lie(247, 1), b"waitid is answered by 0x1"),
}  # fmt: skip


@pytest.fixture(scope="module")
def believing(native: NativeRuntime) -> NativeRuntime:
    return NativeRuntime(native.place, believes_results())


@pytest.mark.parametrize("name", PROGRAM_LIES)
def test_what_no_honest_kernel_answers(native: NativeRuntime, image: EnclaveImage, name: str) -> None:
    words, lie, why = PROGRAM_LIES[name]
    done = native.run(image, "p", words, lie=lie)
    assert done.returncode == 125, done
    assert why in done.stderr


@pytest.mark.parametrize("name", PROGRAM_LIES)
def test_without_the_check_it_gets_through(believing: NativeRuntime, image: EnclaveImage, name: str) -> None:
    words, lie, _ = PROGRAM_LIES[name]
    done = believing.run(image, "p", words, lie=lie)
    assert done.returncode != 125
    assert sorted(done.stdout.splitlines()) != sorted(believing.run(image, "p", words).stdout.splitlines())
