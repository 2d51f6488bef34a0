# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's own programs in enclaves do what they do outside of them, in the same guest."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.e2e.shielded_programs import EXERCISES, LONG_EXERCISES, Exercise, Program
from tests.e2e.snapshots import RunSnapshots
from veil.cache import Cache
from veil.cvm import ConfidentialVM, Configuration
from veil.cvm.enclaves import enclave_command, image_place
from veil.formats.enclave_settings import ON, EncSettings
from veil.guest.enclaves.build import build_enclave
from veil.guest.enclaves.manifest import Manifest
from veil.guest.enclaves.trusted_files import DebianFiles
from veil.image.services_image import protected_services

_WORDS = "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i of some words; done >/tmp/words"
_LOADER = "/lib64/ld-linux-x86-64.so.2"
_EVERY_MANIFEST: dict[str, object] = {
    "arguments": {"outside": True},
    "environment": {"outside": ["*"]},
    "files": {"pass": ["/tmp/", "/dev/null"]},
    "directory": "/tmp",
}


def _guest(snapshots: RunSnapshots, memory: str) -> Iterator[ConfidentialVM]:
    """One for all: what an enclave trusts its starter leaves there, and then the program finds it outside, too."""
    services = protected_services(EncSettings(mode=ON))
    with ConfidentialVM.restore(snapshots.of(Configuration.make(memory, services=services))) as vm:
        vm.run(["sh", "-c", _WORDS])
        yield vm


@pytest.fixture(scope="module")
def guest(snapshots: RunSnapshots) -> Iterator[ConfidentialVM]:
    yield from _guest(snapshots, "512M")


@pytest.fixture(scope="module")
def large_guest(snapshots: RunSnapshots) -> Iterator[ConfidentialVM]:
    yield from _guest(snapshots, "1G")


def _install(guest: ConfidentialVM, folder: Path, name: str, program: Program) -> tuple[str, str]:
    """How the program starts in an enclave, and how outside of one; both are in the guest from now on."""
    files = DebianFiles(Cache(), program.packages)
    image = build_enclave(Cache(), files, program.path, Manifest.of({**_EVERY_MANIFEST, **program.manifest}))
    place = folder / f"{name}.enclave"
    place.write_bytes(image.pack())
    guest.copy_in(place, image_place(place))
    path, content = files.program(program.path)
    executables = {path: content}
    if guest.run(["test", "-e", _LOADER]).exit_status:
        executables[_LOADER] = files.file(_LOADER)
    for where, data in executables.items():
        copy = folder / "executable"
        copy.write_bytes(data)
        copy.chmod(0o755)
        # What is there may be a link to busybox, which is the guest's shell, too.
        guest.run(["sh", "-c", f"mkdir -p {Path(where).parent}; rm -f {where}"])
        guest.copy_in(copy, where)
    return shlex.join(enclave_command(place, ())), path


def _do(guest: ConfidentialVM, commands: str, programs: Mapping[str, str], timeout: float) -> tuple[str, int]:
    variables = "".join(f"{name}={shlex.quote(start)}\n" for name, start in programs.items())
    done = guest.run(["sh", "-c", f"{variables}{commands}"], timeout=timeout)
    return (done.stdout + done.stderr).decode(), done.exit_status


def _compare(guest: ConfidentialVM, folder: Path, exercise: Exercise, timeout: float) -> None:
    starts = {name: _install(guest, folder, name, program) for name, program in exercise.programs.items()}
    shielded = _do(guest, exercise.commands, {name: start for name, (start, _) in starts.items()}, timeout)
    outside = _do(guest, exercise.commands, {name: start for name, (_, start) in starts.items()}, timeout)
    guest.run(["sh", "-c", "rm -f /tmp/*.enclave"])
    assert exercise.expected in outside[0]
    assert shielded == outside


# Python takes as long as all others together.
_PYTHON = [exercise for exercise in EXERCISES if exercise.name == "python3.11"]
_SHORT = [exercise for exercise in EXERCISES if exercise not in _PYTHON]


@pytest.mark.parametrize("exercise", _SHORT, ids=lambda exercise: exercise.name)
def test_a_program_does_what_it_does_outside(guest: ConfidentialVM, tmp_path: Path, exercise: Exercise) -> None:
    _compare(guest, tmp_path, exercise, 120)


@pytest.mark.soak
@pytest.mark.parametrize("exercise", [*_PYTHON, *LONG_EXERCISES], ids=lambda exercise: exercise.name)
def test_more_of_them_and_for_longer(large_guest: ConfidentialVM, tmp_path: Path, exercise: Exercise) -> None:
    _compare(large_guest, tmp_path, exercise, 1200)
