# SPDX-License-Identifier: GPL-2.0-or-later
"""The host on the real machine: launch, VMRUN and requests of guest code, without any device."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest

from tests.host.fakes import PAGE, FakePlatform
from veil.formats.launch_digest import PageType
from veil.host import (
    GuestTerminated,
    Hypervisor,
    LaunchRegion,
    NestedPageFault,
    ProtectedRange,
    Protection,
    RunResult,
    TripleFault,
)
from veil.snp.layouts import Vmsa
from veil.snp.machine import Machine

MEMORY = 8 << 20
CODE, VMSA = 0x10000, 0x11000

VMGEXIT = bytes.fromhex("f30f01d9")
HLT = b"\xf4"
JUMP_TO_SELF = bytes.fromhex("ebfe")


def set_msr(eax: int, edx: int = 0) -> bytes:
    """mov ecx, GHCB MSR; mov eax; mov edx; wrmsr; vmgexit"""
    moves = ((0xB9, 0xC0010130), (0xB8, eax), (0xBA, edx))
    return b"".join(struct.pack("<BI", *move) for move in moves) + b"\x0f\x30" + VMGEXIT


def terminate(code: int) -> bytes:
    return set_msr(0x100 | 1 << 12 | code << 16)


def protected_mode() -> bytes:
    """A VMSA in flat 32-bit mode without paging, in which all memory is private."""
    vmsa = Vmsa()
    for name in ("cs", "ds", "es", "ss"):
        segment = getattr(vmsa, name)
        segment.selector, segment.limit, segment.attrib = 8, 0xFFFFFFFF, 0xC9B if name == "cs" else 0xC93
    vmsa.efer, vmsa.cr0, vmsa.rflags, vmsa.rip = 0x1000, 0x11, 2, CODE
    vmsa.g_pat, vmsa.xcr0, vmsa.dr6, vmsa.dr7, vmsa.sev_features = 0x7040600070406, 1, 0xFFFF0FF0, 0x400, 1
    return bytes(vmsa)


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine(MEMORY) as machine:
        yield machine


def boot(machine: Machine, code: bytes) -> Hypervisor:
    table = [item[:6] for item in machine.cpuid_entries()]
    host = Hypervisor(machine, FakePlatform(), monitor=False, cpuid=table)
    host.launch([LaunchRegion(CODE, PageType.NORMAL, code), LaunchRegion(VMSA, PageType.VMSA, protected_mode())])
    return host


def test_terminate(machine: Machine) -> None:
    with pytest.raises(GuestTerminated, match="PVALIDATE failed"):
        boot(machine, terminate(2)).run(timeout=10)


def test_answer_reaches_the_guest(machine: Machine) -> None:
    # rdmsr; the C-bit's position (31:24) becomes the reason code
    answer = bytes.fromhex("0f32c1e818") + bytes.fromhex("c1e010") + bytes.fromhex("0d00110000") + b"\x31\xd2\x0f\x30"
    with pytest.raises(GuestTerminated) as caught:
        boot(machine, set_msr(0x002) + answer + VMGEXIT).run(timeout=10)
    assert (caught.value.reason_set, caught.value.code) == (1, 51)


def test_page_state_change_and_fault(machine: Machine) -> None:
    share = set_msr(0x20_0000 | 0x014, 2 << 20)
    read = b"\xa1" + (0x20_0000).to_bytes(4, "little")
    host = boot(machine, share + read)
    with pytest.raises(NestedPageFault, match="private access") as caught:
        host.run(timeout=10)
    assert caught.value.gpa == 0x20_0000
    assert host.view.is_shared(0x20_0000, PAGE)
    assert not host.view.is_shared(0x20_1000, PAGE)


SHARE = set_msr(0x20_0000 | 0x014, 2 << 20)
READ_PRIVATE = b"\xa1" + (0x20_0000).to_bytes(4, "little")


def test_a_private_access_takes_the_page_back(machine: Machine) -> None:
    """As under KVM. It is not validated then, which the guest notices: #VC, and here there is nobody to take it."""
    host = boot(machine, SHARE + READ_PRIVATE)
    host.converts_pages = True
    with pytest.raises(TripleFault):
        host.run(timeout=10)
    assert not host.view.is_shared(0x20_0000, PAGE)


def test_a_page_that_is_a_levels_own_is_not_converted(machine: Machine) -> None:
    host = boot(machine, SHARE + READ_PRIVATE)
    host.converts_pages = True
    shared = host.run(lambda: host.view.is_shared(0x20_0000, PAGE), timeout=10)
    assert shared == RunResult.DONE
    host.protection = Protection((ProtectedRange(0x20_0000, PAGE, vmpl=-1),))
    with pytest.raises(NestedPageFault, match="private access"):
        host.run(timeout=10)
    assert host.view.is_shared(0x20_0000, PAGE)


def test_triple_fault(machine: Machine) -> None:
    with pytest.raises(TripleFault):
        boot(machine, b"\x0f\x0b").run(timeout=10)


def test_deadline_ends_a_busy_guest(machine: Machine) -> None:
    host = boot(machine, JUMP_TO_SELF)
    assert host.run(timeout=0.05) == RunResult.TIMEOUT
    assert host.counters()["exit INTR"] >= 1


def test_state_goes_on_in_a_new_host(machine: Machine) -> None:
    host = boot(machine, set_msr(0x12 | 0x30_0000) + HLT + terminate(4))
    context = host.vcpus[0].contexts[0]
    host.run(lambda: context.ghcb is not None, timeout=10)
    fresh: Any = NoHostedCode(machine)
    again = Hypervisor(machine, FakePlatform(), monitor=False)
    again.machine = fresh
    again.load(host.dump())
    assert again.vcpus[0].contexts[0].ghcb == 0x30_0000


class NoHostedCode:
    """The same machine without `attach_vmcb`, which only a restored one has."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def __getattr__(self, name: str) -> object:
        return getattr(self._machine, name)

    def attach_vmcb(self, vmcb: object) -> None:
        pass
