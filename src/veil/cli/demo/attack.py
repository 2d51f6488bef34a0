# SPDX-License-Identifier: GPL-2.0-or-later
"""The demonstration's last part: an enclave in a kernel that is the intruder's, and a secret that nobody else gets."""

from __future__ import annotations

import hashlib
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from veil.cli.demo.enclaves import SECRET
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
#: An enclave that gets its questions from a pipe, until it runs; and an ordinary program that has a secret as well.
_START = f"""
mkfifo {_QUESTIONS} /tmp/plain
setsid sleep 1000 >{_QUESTIONS} 2>/dev/null &
setsid sleep 1000 >/tmp/plain 2>/dev/null &
setsid {{}} <{_QUESTIONS} >{_ANSWERS} 2>&1 &
setsid sh -c 'read -r key; read -r more' </tmp/plain >/dev/null 2>&1 &
until grep -q 'entries [1-9]' /dev/veil; do sleep 0.1; done
"""
_ANSWER = f"for i in $(seq 300); do grep -x '{{}}' {_ANSWERS} && exit; sleep 0.1; done; cat {_ANSWERS}; exit 1"
_STOPPED = "VMPL 3 has no permission"


def show_attack(vm: ConfidentialVM, expected: LaunchLog, image: Path, directory: Path) -> None:
    """Of sqlite3's enclave in a CVM whose kernel has loaded the intruder. Raises VeilError if anything is not as it is
    to be shown."""
    from veil.cvm.enclaves import enclave_command, image_place

    say("the kernel is the intruder's now; sqlite3 runs in an enclave there, and waits for its key")
    vm.copy_in(image, image_place(image))
    in_guest(vm, _START.format(" ".join(enclave_command(image, [":memory:"]))))
    _ask(vm, f"create table k as select readfile('/run/secrets/{SECRET}') as k;")
    key, plain = (secrets.token_hex(16).encode() for _ in range(2))
    measurement = read_image(str(image)).measurement
    _attest_and_provision(vm, expected, image.name, measurement, key)
    _ask(vm, "select 'it has ' || length(k) || ' bytes' from k;")
    _hear(vm, f"it has {len(key)} bytes")
    vm.run(["sh", "-c", "cat >/tmp/plain"], stdin=plain + b"\n")
    say("the intruder knows both keys, that of the enclave and that of an ordinary program, and looks for them")
    hidden, found = _search(vm, "the enclave's", key), _search(vm, "the program's", plain)
    if hidden or not found:
        raise VeilError("the intruder found what it was not to find, or not what it was to find")
    snapshot = directory / "attacked"
    vm.snapshot(snapshot)
    for what in ("read", "write"):
        _touch(snapshot, expected, measurement, what)
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


def _attest_and_provision(vm: ConfidentialVM, expected: LaunchLog, name: str, measurement: bytes, key: bytes) -> None:
    from veil.remote.enc.enclaves import open_enclaves

    say(f"$ veil enclave attest {name}")
    with own_client(vm, expected) as (client, trust):
        enclaves = open_enclaves(client, trust)
        said = [enclaves.attest(item.number) for item in enclaves.all() if item.state == "ready"]
        if [item.measurement for item in said] != [measurement]:
            raise VeilError("the enclave that runs is not the one that was built")
        say(f"enclave {said[0].enclave}: {measurement.hex()}")
        say(f"$ veil enclave provision {name} {SECRET}")
        enclaves.provision(measurement, SECRET.encode(), key)


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


def _touch(snapshot: Path, expected: LaunchLog, measurement: bytes, what: str) -> None:
    """A copy of the CVM, in which the intruder reads or writes a page of the enclave's."""
    from veil.cvm import ConfidentialVM
    from veil.remote.enc.enclaves import open_enclaves

    say(f"in a copy of the CVM: $ echo {what} >{_INTRUDER}/touch")
    with ConfidentialVM.restore(snapshot) as vm:
        try:
            vm.run(["sh", "-c", f"echo {what} >{_INTRUDER}/touch"])
        except VeilError as error:
            if _STOPPED not in str(error):
                raise
            say(f"  stopped: {printable(str(error))}")
        else:
            raise VeilError(f"the kernel could {what} an enclave's memory")
        # What is left of the kernel does not end VeilMon and the services.
        vm.hypervisor.kernel_end.is_outlived = True
        with own_client(vm, expected) as (client, trust):
            (enclave,) = open_enclaves(client, trust).all()
        if enclave.measurement != measurement.hex():
            raise VeilError("the enclave is another one")
        say("  VeilMon and VeilS-ENC go on without that kernel")
