# SPDX-License-Identifier: GPL-2.0-or-later
"""The demonstration's last part: enclaves in a kernel that is the intruder's, and a secret that nobody else gets."""

from __future__ import annotations

import hashlib
import re
import secrets
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from veil.cli.demo.enclaves import BUSYBOX, SECRET, SQLITE
from veil.cli.demo.guest import in_guest
from veil.cli.files import read_image
from veil.cli.output import say
from veil.cli.own_cvm import own_client
from veil.errors import VeilError
from veil.formats.printable import printable

if TYPE_CHECKING:
    from veil.cvm import ConfidentialVM
    from veil.formats.launch_digest import LaunchLog

__all__ = ["show_attack"]

_QUESTIONS, _ANSWERS, _INTRUDER = "/tmp/questions", "/tmp/answers", "/sys/module/intruder/parameters"
#: An enclave that gets its questions from a pipe, one that keeps what it reads in a variable, and an ordinary program
#: that has a secret as well. They wait until both enclaves have entered.
_START = f"""
mkfifo {_QUESTIONS} /tmp/plain
setsid sleep 1000 >{_QUESTIONS} 2>/dev/null &
setsid sleep 1000 >/tmp/plain 2>/dev/null &
setsid {{sqlite3}} <{_QUESTIONS} >>{_ANSWERS} 2>&1 &
until grep -q 'entries [1-9]' /dev/veil; do sleep 0.1; done
setsid sleep 1000 2>/dev/null | setsid {{busybox}} >>{_ANSWERS} 2>&1 &
setsid sh -c 'read -r key; read -r more' </tmp/plain >/dev/null 2>&1 &
until grep -q 'busybox waits' {_ANSWERS}; do sleep 0.1; done
"""
_KEEP = f"echo busybox waits; read -r key </run/secrets/{SECRET}; echo busybox has ${{#key}} bytes; read -r more"
_ANSWER = f"for i in $(seq 300); do grep -x '{{}}' {_ANSWERS} && exit; sleep 0.1; done; cat {_ANSWERS}; exit 1"
_STOPPED = "VMPL 3 has no permission"


def show_attack(vm: ConfidentialVM, expected: LaunchLog, images: Mapping[str, Path], directory: Path) -> None:
    """Of the enclaves of sqlite3 and busybox in a CVM whose kernel has loaded the intruder.

    Raises VeilError if anything is not as it is to be shown.
    """
    from veil.cvm.enclaves import enclave_command, image_place

    say("the kernel is the intruder's now; sqlite3 and busybox run in enclaves there, and wait for their key")
    starts = {SQLITE: [":memory:"], BUSYBOX: ["sh", "-c", _KEEP]}
    for image in images.values():
        vm.copy_in(image, image_place(image))
    commands = {name: shlex.join(enclave_command(images[name], arguments)) for name, arguments in starts.items()}
    in_guest(vm, _START.format(**commands))
    _ask(vm, f"create table k as select readfile('/run/secrets/{SECRET}') as k;")
    key, plain = (secrets.token_hex(16).encode() for _ in range(2))
    measurements = {name: read_image(str(images[name])).measurement for name in starts}
    numbers = _attest_and_provision(vm, expected, measurements, key)
    _ask(vm, "select 'sqlite3 has ' || length(k) || ' bytes' from k;")
    for name in starts:
        _hear(vm, f"{name} has {len(key)} bytes")
    vm.run(["sh", "-c", "cat >/tmp/plain"], stdin=plain + b"\n")
    say("the intruder knows both keys, that of the enclaves and that of an ordinary program, and looks for them")
    hidden, found = _search(vm, "the enclaves'", key), _search(vm, "the program's", plain)
    if hidden or not found:
        raise VeilError("the intruder found what it was not to find, or not what it was to find")
    snapshot = directory / "attacked"
    vm.snapshot(snapshot)
    for name, number in numbers.items():
        for what in ("read", "write"):
            say(f"in a copy of the CVM, {name}'s memory: $ echo {what} {number} >{_INTRUDER}/touch")
            _touch(snapshot, expected, set(measurements.values()), f"{what} {number}")
    say("the enclave of the first CVM proves that it has the key: it is asked for SHA3-256 of the key and new words")
    words = secrets.token_hex(8)
    _ask(vm, f"select lower(hex(sha3(k || '{words}', 256))) from k;")
    _hear(vm, hashlib.sha3_256(key + words.encode()).hexdigest())


def _hear(vm: ConfidentialVM, expected: str) -> None:
    result = vm.run(["sh", "-c", _ANSWER.format(expected)])
    say(printable(result.stdout.decode(errors="replace").strip()))
    if result.exit_status:
        raise VeilError("the enclave does not answer as expected")


def _ask(vm: ConfidentialVM, query: str) -> None:
    if vm.run(["sh", "-c", f"cat >{_QUESTIONS}"], stdin=f"{query}\n".encode()).exit_status:
        raise VeilError("the enclave's pipe takes no question")


def _attest_and_provision(
    vm: ConfidentialVM, expected: LaunchLog, measurements: Mapping[str, bytes], key: bytes
) -> dict[str, int]:
    """The enclaves' numbers, by the names of their programs."""
    from veil.remote.enc.enclaves import open_enclaves

    numbers = {}
    with own_client(vm, expected) as (client, trust):
        enclaves = open_enclaves(client, trust)
        said = [enclaves.attest(item.number) for item in enclaves.all() if item.state == "ready"]
        if sorted(item.measurement for item in said) != sorted(measurements.values()):
            raise VeilError("the enclaves that run are not those that were built")
        for name, measurement in measurements.items():
            (numbers[name],) = (item.enclave for item in said if item.measurement == measurement)
            say(f"$ veil enclave attest {name}.enclave")
            say(f"enclave {numbers[name]}: {measurement.hex()}")
            say(f"$ veil enclave provision {name}.enclave {SECRET}")
            enclaves.provision(measurement, SECRET.encode(), key)
    return numbers


def _search(vm: ConfidentialVM, whose: str, key: bytes) -> int:
    """How often the intruder finds it."""
    # In digits: else it would find its own order.
    place = f"{_INTRUDER}/search"
    result = vm.run(["sh", "-c", f"echo {key.hex()} >{place} && cat {place}"])
    found = re.match(rb"found (\d{1,9}) times", result.stdout)
    if result.exit_status or found is None:
        raise VeilError(f"the intruder cannot search: {printable(result.stderr)}")
    say(f"  {whose}: {printable(result.stdout.decode().strip())}")
    return int(found[1])


def _touch(snapshot: Path, expected: LaunchLog, measurements: set[bytes], what: str) -> None:
    """A copy of the CVM, in which the intruder reads or writes a page of an enclave's."""
    from veil.cvm import ConfidentialVM
    from veil.remote.enc.enclaves import open_enclaves

    with ConfidentialVM.restore(snapshot) as vm:
        try:
            vm.run(["sh", "-c", f"echo {what} >{_INTRUDER}/touch"])
        except VeilError as error:
            if _STOPPED not in str(error):
                raise
            say(f"  stopped: {printable(str(error))}")
        else:
            raise VeilError(f"the kernel could {what.partition(' ')[0]} an enclave's memory")
        # What is left of the kernel does not end VeilMon and the services.
        vm.hypervisor.kernel_end.is_outlived = True
        with own_client(vm, expected) as (client, trust):
            left = {bytes.fromhex(item.measurement) for item in open_enclaves(client, trust).all()}
        if left != measurements:
            raise VeilError("the enclaves are other ones")
        say("  VeilMon and VeilS-ENC go on without that kernel")
