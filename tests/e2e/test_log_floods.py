# SPDX-License-Identifier: GPL-2.0-or-later
"""A compromised kernel calls VeilS-LOG in a loop of few instructions: memory stays bounded, the policy holds."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from tests.e2e.hijack import RESULT, VMGEXIT, Hijack
from tests.e2e.log_guest import DROPPING_LOG, log_reader, log_service, records_of
from tests.e2e.snapshots import Resume
from veil.cvm import ConfidentialVM
from veil.cvm.configuration import Settings
from veil.formats.log import LOG_NUMBER, AuditRecord, EntryKind, KernelCall, LogEntry, pack_records
from veil.formats.request_block import BLOCK_HEADER
from veil.formats.status import Status
from veil.host import RunResult
from veil.remote.log.reader import LogReader

_KIB = 1 << 10
#: bytes of a record's text; the number of the call is in its last eight
_TEXT = 200
#: more than find room
_CALLS = [5_000, pytest.param(100_000, marks=pytest.mark.soak)]


class Flood:
    """Calls with records that are numbered from 0. With `patient` a call that is refused as FULL is made again, as the
    driver does, else it is given up."""

    def __init__(self, vm: ConfidentialVM, calls: int, *, patient: bool) -> None:
        self.vm = vm
        self.kernel = Hijack(vm)
        self.calls = calls
        (gpa, _) = self.kernel.veilmon.state.blocks[0]
        body = pack_records([AuditRecord(1300, bytes(_TEXT))])
        self.code = f"""
            xor r12, r12
            xor r13, r13
        next:
            cmp r12, {calls}
            jae done
            mov [{gpa + BLOCK_HEADER + 8 + _TEXT - 8}], r12
        again:
            mov word ptr [{gpa + 8}], {LOG_NUMBER}
            mov word ptr [{gpa + 10}], {int(KernelCall.RECORDS)}
            mov dword ptr [{gpa + 12}], {len(body)}
            mov dword ptr [{gpa}], 1
            mov ecx, 0xc0010130
            mov eax, 0x016
            mov edx, 1
            wrmsr
            {VMGEXIT}
            mov eax, [{gpa + 4}]
            cmp eax, {int(Status.FULL)}
            jne taken
            inc r13
            mov [{RESULT + 8}], r13
            {"jmp again" if patient else ""}
        taken:
            inc r12
            mov [{RESULT}], r12
            jmp next
        done:
            hlt
            jmp done
        """
        self.kernel.kernel.write(gpa + BLOCK_HEADER, body)

    def start(self) -> None:
        self.kernel.start(self.code)

    @property
    def made(self) -> int:
        """Calls that were taken, or given up."""
        return self.kernel.result()

    @property
    def refused(self) -> int:
        """How often the answer was FULL."""
        return self.kernel.kernel.read_u64(RESULT + 8)

    def run(self, timeout: float = 60.0) -> None:
        """Until all calls are made."""
        host = self.vm.hypervisor
        assert host.run(until=lambda: self.made >= self.calls, timeout=timeout) == RunResult.DONE


def numbers(entries: list[LogEntry]) -> list[int]:
    """Which of the flood's records are there."""
    flood = (item.text for item in records_of(entries) if len(item.text) == _TEXT)
    return [struct.unpack("<Q", text[-8:])[0] for text in flood]


def resident() -> int:
    """Bytes of this process, in which the host, the machine and the services' program run."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


def drain(reading: LogReader, flood: Flood) -> tuple[list[int], int]:
    """Read and acknowledge until the flood is over; its numbers, and how often the log was read."""
    found: list[int] = []
    rounds = 0
    while True:
        ended = flood.made >= flood.calls
        found += numbers(list(reading.fetch()))
        if ended:
            return found, rounds
        reading.acknowledge()
        rounds += 1


# All of them are read while the kernel never rests, which takes half a minute with 100,000.
@pytest.mark.parametrize("calls", _CALLS)
def test_halt(calls: int, resume: Resume, audit_guest: Settings) -> None:
    """Nothing is overwritten, the kernel waits, and goes on whenever an owner has made room."""
    vm = resume(**audit_guest)
    reading = log_reader(vm)
    flood = Flood(vm, calls, patient=True)
    before = resident()
    flood.start()
    assert vm.hypervisor.run(until=lambda: flood.refused >= 1000, timeout=60) == RunResult.DONE
    full = flood.made
    assert 1500 < full < calls
    assert log_service(vm).store.free < 24 + 8 + _TEXT + 32
    # However long it asks.
    vm.hypervisor.run(until=lambda: flood.refused >= 3000, timeout=60)
    assert flood.made == full
    found, rounds = drain(reading, flood)
    assert found == list(range(calls))
    assert rounds >= calls // full
    assert reading.head().dropped == 0
    assert resident() - before < 64 * _KIB * _KIB


@pytest.mark.parametrize("calls", _CALLS)
def test_drop(calls: int, resume: Resume) -> None:
    """The kernel does not wait; what found no room is counted, in the head and in the log."""
    vm = resume(**DROPPING_LOG)
    reading = log_reader(vm)
    flood = Flood(vm, calls, patient=False)
    before = resident()
    flood.start()
    flood.run()
    assert flood.refused == 0
    entries = list(reading.fetch())
    kept = numbers(entries)
    assert kept == list(range(len(kept)))
    head = reading.head()
    assert head.dropped == calls - len(kept) > 2_000
    reading.acknowledge()
    entries += list(reading.fetch())
    told = [int.from_bytes(item.body, "little") for item in entries if item.kind == EntryKind.DROPPED]
    assert sum(told) == head.dropped
    assert resident() - before < 64 * _KIB * _KIB


@pytest.mark.parametrize("calls", _CALLS)
def test_hostile_code_that_does_not_wait(calls: int, resume: Resume, audit_guest: Settings) -> None:
    """With `halt`, who does not wait has lost its own records, and nobody else's: the policy cannot be got round."""
    vm = resume(**audit_guest)
    reading = log_reader(vm)
    flood = Flood(vm, calls, patient=False)
    flood.start()
    flood.run()
    kept = numbers(list(reading.fetch()))
    assert kept == list(range(len(kept)))
    assert flood.refused == calls - len(kept) > 0
    assert json.loads(reading.manifest.pack())["full"] == "halt"
