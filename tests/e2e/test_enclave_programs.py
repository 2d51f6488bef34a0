# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs as they are, shielded in the stock guest: the same output as outside, and what root outside cannot do."""

from __future__ import annotations

import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.snapshots import Resume
from tests.guest.enclaves.native_runtime import compile_program
from tests.guest.enclaves.programs import (
    FLOATING_POINT,
    INTERRUPTS,
    MEMORY,
    OUTSIDE,
    SIGNALS,
    TERMINATED,
    THREADS,
    TIMERS,
)
from veil.cache import Cache
from veil.cvm import ConfidentialVM, Result
from veil.cvm.enclaves import enclave_command, image_place
from veil.formats.enclave_settings import ON, EncSettings
from veil.formats.kci_settings import OFF as KCI_OFF
from veil.formats.kci_settings import ON as KCI_ON
from veil.formats.kci_settings import KciSettings
from veil.guest.enclaves.build import build_enclave
from veil.guest.enclaves.image import EnclaveImage
from veil.guest.enclaves.manifest import Manifest
from veil.guest.enclaves.trusted_files import ComputerFiles, DebianFiles
from veil.image.services_image import protected_services

_LIBRARY = "/lib/x86_64-linux-gnu/libsqlite3.so.0"
_MANIFEST: dict[str, object] = {
    "memory": "8M",
    "threads": 9,
    "arguments": {"outside": True},
    "files": {"pass": ["/tmp/"], "sealed": ["/tmp/sealed/"]},
}
#: The program that is not told of a signal is ended by the second one: who sends it wants that.
_TERMINATE = """
{} >/tmp/out & program=$!
until grep -q here /tmp/out; do sleep 0.1; done
kill -TERM $program; sleep 0.3; kill -TERM $program 2>/dev/null; wait $program; echo $?
"""


@pytest.fixture
def vm(resume: Resume) -> ConfidentialVM:
    return resume(services=protected_services(EncSettings(mode=ON)))


@pytest.fixture(scope="module")
def sqlite3() -> EnclaveImage:
    """Debian's own, dynamic."""
    return build_enclave(Cache(), DebianFiles(Cache(), ["sqlite3"]), "sqlite3", Manifest.of(_MANIFEST))


def _run(vm: ConfidentialVM, folder: Path, image: EnclaveImage, *arguments: str) -> Result:
    place = folder / "test.enclave"
    place.write_bytes(image.pack())
    return vm.run_enclave(place, arguments, timeout=200)


def _build(folder: Path, text: str, *flags: str, **more: object) -> EnclaveImage:
    program = compile_program(folder, text, *flags)
    return build_enclave(Cache(), ComputerFiles(), str(program), Manifest.of({**_MANIFEST, **more}))


def test_sqlite3_keeps_a_database_that_the_guest_cannot_read(
    vm: ConfidentialVM, tmp_path: Path, sqlite3: EnclaveImage
) -> None:
    vm.run(["mkdir", "/tmp/sealed"])
    made = _run(vm, tmp_path, sqlite3, "/tmp/sealed/db", "create table t(a); insert into t values('password');")
    assert (made.stdout, made.exit_status) == (b"", 0), made
    assert vm.run(["grep", "-c", "password", "/tmp/sealed/db"]).stdout == b"0\n"
    read = _run(vm, tmp_path, sqlite3, "/tmp/sealed/db", "select a, 6*7 from t")
    assert (read.stdout, read.exit_status) == (b"password|42\n", 0), read
    vm.run(["sh", "-c", "printf X | dd of=/tmp/sealed/db bs=1 seek=5000 conv=notrunc"])
    changed = _run(vm, tmp_path, sqlite3, "/tmp/sealed/db", "select a from t")
    assert b"password" not in changed.stdout
    assert changed.exit_status != 0


@pytest.mark.soak
def test_a_sealed_database_outlives_the_launch(resume: Resume, tmp_path: Path, sqlite3: EnclaveImage) -> None:
    """Another launch of the same image reads it; another image, here one whose kernel is locked down, does not."""
    services = protected_services(KciSettings(mode=KCI_OFF), EncSettings(mode=ON))
    first, place = resume(services=services), tmp_path / "db"
    first.run(["mkdir", "/tmp/sealed"])
    made = _run(first, tmp_path, sqlite3, "/tmp/sealed/db", "create table t(a); insert into t values('password');")
    assert made.exit_status == 0, made
    first.copy_out("/tmp/sealed/db", place)
    with ConfidentialVM(services=services, fresh=True) as second:
        read = _read(second, tmp_path, sqlite3, place)
        assert (read.stdout, read.exit_status) == (b"password\n", 0), read
    other = resume(services=protected_services(KciSettings(mode=KCI_ON), EncSettings(mode=ON)))
    read = _read(other, tmp_path, sqlite3, place)
    assert b"password" not in read.stdout
    assert read.exit_status != 0
    # What is left there is a CVM in which such files work.
    other.run(["rm", "/tmp/sealed/db"])
    assert _run(other, tmp_path, sqlite3, "/tmp/sealed/db", "create table t(a); select 6*7").stdout == b"42\n"


def _read(vm: ConfidentialVM, folder: Path, image: EnclaveImage, database: Path) -> Result:
    vm.run(["mkdir", "/tmp/sealed"])
    vm.copy_in(database, "/tmp/sealed/db")
    return _run(vm, folder, image, "/tmp/sealed/db", "select a from t")


def test_a_library_that_root_changed_is_not_used(vm: ConfidentialVM, tmp_path: Path, sqlite3: EnclaveImage) -> None:
    assert _run(vm, tmp_path, sqlite3, ":memory:", "select 6*7").stdout == b"42\n"
    vm.run(["sh", "-c", f"printf X | dd of={_LIBRARY} bs=1 seek=700000 conv=notrunc"])
    changed = _run(vm, tmp_path, sqlite3, ":memory:", "select 6*7")
    assert (changed.stdout, changed.exit_status) == (b"", 128 + signal.SIGBUS), changed


def test_threads(vm: ConfidentialVM, tmp_path: Path) -> None:
    done = _run(vm, tmp_path, _build(tmp_path, THREADS, "-static"))
    assert (done.stdout, done.exit_status) == (b"180000 40000\n", 0), done


def test_faults_and_signals(vm: ConfidentialVM, tmp_path: Path) -> None:
    done = _run(vm, tmp_path, _build(tmp_path, SIGNALS, "-static"))
    assert done.stdout.decode().splitlines() == [
        "repaired x 1.5", "caught 8", "blocked 0", "delivered 1", "caught 4",
    ]  # fmt: skip
    assert done.exit_status == 143


def test_each_thread_has_its_own_floating_point_state(vm: ConfidentialVM, tmp_path: Path) -> None:
    """With one slot beside the first thread's, which its threads have one after the other."""
    image = _build(tmp_path, FLOATING_POINT, "-static", "-lm", threads=2)
    outside = subprocess.run([tmp_path / "program"], capture_output=True, check=True).stdout
    done = _run(vm, tmp_path, image)
    assert (done.stdout, done.exit_status) == (outside, 0), done


@pytest.mark.parametrize("vcpus", [1, 2])
def test_signals_come_while_a_program_computes_or_waits(resume: Resume, tmp_path: Path, vcpus: int) -> None:
    vm = resume(vcpus=vcpus, services=protected_services(EncSettings(mode=ON)))
    done = _run(vm, tmp_path, _build(tmp_path, INTERRUPTS, "-static"))
    assert done.stdout.decode().splitlines() == [
        "interrupted 1, the same sum 1",
        "urged 1",
        "without SA_RESTART EINTR",
        "goes on 1",
        "with SA_RESTART 0",
        "waited for 1",
        "what is blocked interrupts nobody 0 0",
        "until it is let in 1",
    ]
    assert done.exit_status == 7


@pytest.mark.parametrize("vcpus", [1, 2])
def test_timers_of_posix(resume: Resume, tmp_path: Path, vcpus: int) -> None:
    """Without a word in the manifest: the program has set them itself."""
    vm = resume(vcpus=vcpus, services=protected_services(EncSettings(mode=ON)))
    image = _build(tmp_path, TIMERS, "-static", "-w")
    outside = subprocess.run([tmp_path / "program"], capture_output=True, check=True).stdout
    done = _run(vm, tmp_path, image)
    assert (done.stdout, done.exit_status) == (outside, 0), done


@pytest.mark.parametrize(("allowed", "status"), [(["TERM"], b"15\n"), ([], b"143\n")])
def test_a_signal_from_outside_while_a_program_computes(
    vm: ConfidentialVM, tmp_path: Path, allowed: list[str], status: bytes
) -> None:
    place = tmp_path / "test.enclave"
    place.write_bytes(_build(tmp_path, TERMINATED, "-static", signals=allowed).pack())
    vm.copy_in(place, image_place(place))
    done = vm.run(["sh", "-c", _TERMINATE.format(shlex.join(enclave_command(place, ())))], timeout=60)
    assert done.stdout == status, done


def test_programs_outside(vm: ConfidentialVM, tmp_path: Path) -> None:
    """Those that the manifest names are started, as processes that are not shielded, and no other."""
    image = _build(tmp_path, OUTSIDE, "-static", "-w", programs=["/bin/echo", "/bin/none", "/bin/sleep"])
    expected = {
        "echo": ["0", "ended 0", "hi there"],
        "ends": ["1 2", "ended 700"],
        "kill": ["0", "1 2 15 17", "ended f"],
        "signal": ["17", "ended 0"],
        "refused": [
            "", "-1 Function not implemented", "No such file or directory", "Permission denied", "Success", "ended 0",
        ],
    }  # fmt: skip
    for words, lines in expected.items():
        done = _run(vm, tmp_path, image, words)
        assert (sorted(done.stdout.decode().splitlines()), done.exit_status) == (lines, 0), done


def test_why_it_ended_is_said_outside(vm: ConfidentialVM, tmp_path: Path) -> None:
    """By the starter, in one line; the protected log has more."""
    text = "#include <sys/syscall.h>\n#include <unistd.h>\nint main(void) { return syscall(SYS_fork) + 1; }"
    place = tmp_path / "test.enclave"
    place.write_bytes(_build(tmp_path, text, "-static", unsupported="end").pack())
    vm.copy_in(place, image_place(place))
    ended = b"veil-enclave: the enclave has ended itself; the protected log says why (veil logs)\n"
    too_big = (
        b"veil-enclave: arguments and environment: Argument list too long (at most 2048 arguments, 2048 variables, and "
        b"128 KiB of both, in half of the stack)\n"
    )
    for more, line in {"": ended, "$(seq 2048)": too_big, "$(seq 1000000 1020000)": too_big}.items():
        done = vm.run(["sh", "-c", f"{shlex.join(enclave_command(place, ()))} {more}"])
        assert (done.stdout, done.stderr, done.exit_status) == (b"", line, 125), done


def test_a_trusted_file_for_which_there_is_no_room(vm: ConfidentialVM, tmp_path: Path) -> None:
    """It is said, and no part of it is left behind, which would be one that somebody has changed."""
    data = tmp_path / "data"
    data.write_bytes(b"x" * 100_000)
    text = f'#include <unistd.h>\nint main(void) {{ return access("{data}", R_OK); }}'
    place = tmp_path / "test.enclave"
    place.write_bytes(_build(tmp_path, text, "-static", files={"trusted": [str(data)]}).pack())
    vm.copy_in(place, image_place(place))
    command = shlex.join(enclave_command(place, ()))
    full = vm.run(["sh", "-c", f"trap '' XFSZ; ulimit -f 8; {command}"])
    assert (full.stderr, full.exit_status) == (f"veil-enclave: {data}: File too large\n".encode(), 125), full
    done = vm.run(["sh", "-c", command])
    assert (done.stderr, done.exit_status) == (b"", 0), done


def test_memory(vm: ConfidentialVM, tmp_path: Path) -> None:
    vm.run(["sh", "-c", "echo words > /tmp/text"])
    done = _run(vm, tmp_path, _build(tmp_path, MEMORY, "-static", memory="128M"), "/tmp/text")
    assert (done.stdout, done.exit_status) == (b"42\nwords\n", 0), done
