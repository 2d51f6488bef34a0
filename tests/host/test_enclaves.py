# SPDX-License-Identifier: GPL-2.0-or-later
"""Contexts of VMPL 2 run by the real host on the bare machine: in, out, and what must not happen."""

from __future__ import annotations

import json
import struct
import threading
import time
from typing import Any

import pytest

from tests.enclave_guest import SHARED_DATA, VMGEXIT, EnclaveGuest, enter, enter_request
from tests.host.fakes import FakePlatform
from tests.machine_code import assemble
from tests.small_guest import FREE, PAGE, TABLES, VMSA
from veil.cvm.plain_values import from_plain, to_plain
from veil.formats.ghcb import LEAVE_ENCLAVE, RUN_VMPL_REFUSED, run_context_ended, run_context_request
from veil.host import HostError, Hypervisor, RunResult, RunState
from veil.snp import ExitCode, RmpResult
from veil.snp.layouts import Vmsa

DONE = 0x17


@pytest.fixture(params=["by the machine", "by the host"], autouse=True)
def _switches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does plain domain switches, the same happens."""
    monkeypatch.setattr(EnclaveGuest, "switches_by_machine", request.param == "by the machine")


def store(number: int) -> str:
    """Of the kernel: the last answer into SHARED_DATA."""
    return f"shl rdx, 32\nor rax, rdx\nmov [{SHARED_DATA + 8 * number}], rax\n"


def test_in_and_out_and_in_again() -> None:
    count = f"1: inc qword ptr [{SHARED_DATA}]\n{VMGEXIT}jmp 1b"
    with EnclaveGuest(enter(0) + store(1) + enter(0) + store(2) + enter(0) + store(3), count) as guest:
        guest.go()
        assert [guest.data(number) for number in range(4)] == [3, DONE, DONE, DONE]
        context = guest.hypervisor.enclaves.get(guest.vmsa_of(0))
        assert context is not None
        assert context.vmcb.ghcb_gpa == LEAVE_ENCLAVE
        assert (guest.registers(0).vmpl, guest.registers(0).cpl) == (2, 3)


def test_an_interrupt_ends_an_endless_loop_and_the_enclave_goes_on() -> None:
    enclave = (
        f"mov r15, 77\n1: inc rbx\ncmp qword ptr [{SHARED_DATA + 64}], 0\nje 1b\nmov [{SHARED_DATA}], r15\n{VMGEXIT}"
    )
    kernel = (
        enter(0) + store(1) + "sti\nnop\nnop\ncli\n" + f"inc qword ptr [{SHARED_DATA + 64}]\n" + enter(0) + store(2)
    )
    with EnclaveGuest(kernel, enclave) as guest:
        first = guest.hypervisor.vcpus[0]
        guest.hypervisor.run(lambda: first.vmpl == 2 and guest.registers(0).rbx > 0, timeout=10)
        rbx = guest.registers(0).rbx
        # A timer of the kernel's, whose handler halts.
        guest.platform.on_tick = lambda now: guest.platform.vectors.update({0: [0x31]})
        guest.platform.deadline = time.monotonic_ns() + 1_000_000
        guest.hypervisor.device_accessed = True
        guest.go()
        assert (guest.trap().vector, guest.trap().times) == (0x31, 1)
        assert (guest.data(1), guest.data(0)) == (DONE, 0)
        assert guest.registers(0).rbx >= rbx > 0
        assert guest.platform.log == [("ack", 0)]
        guest.resume_kernel()
        guest.go()
        assert (guest.data(0), guest.data(2)) == (77, DONE)


def test_with_an_interrupt_due_the_enclave_is_left_before_its_first_instruction() -> None:
    with EnclaveGuest(enter(0) + store(1), f"inc qword ptr [{SHARED_DATA}]\n{VMGEXIT}") as guest:
        guest.platform.vectors[0] = [0x31]
        guest.go()
        assert (guest.data(0), guest.data(1)) == (0, DONE)


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (f"mov [{FREE}], rax", ExitCode.NPF),
        (f"jmp {SHARED_DATA}", ExitCode.NPF),
        ("lea rsp, [rip]\nud2", ExitCode.VMGEXIT),
        ("hlt", ExitCode.VMGEXIT),
        ("pushf\nor dword ptr [rsp], 0x3000\npopf\ncli", ExitCode.VMGEXIT),
    ],
    ids=["a page of others", "data as code", "ud2", "hlt", "cli"],
)
def test_faults_end_nothing_but_the_run(code: str, exit_code: int) -> None:
    """Exceptions are the enclave's own (its handler leaves); what the RMP refuses is told to the kernel."""
    with EnclaveGuest(enter(0) + store(1) + enter(0) + store(2), f"{code}\nhandler: {VMGEXIT}jmp handler") as guest:
        guest.go()
        answer = DONE if exit_code == ExitCode.VMGEXIT else run_context_ended(exit_code)
        assert (guest.data(1), guest.data(2)) == (answer, answer)


def test_a_triple_fault_is_the_enclaves_own_end() -> None:
    with EnclaveGuest(enter(0) + store(1), "ud2") as guest:
        vmsa = guest.registers(0)
        vmsa.idtr.limit = 0
        guest.top.write(guest.vmsa_of(0), bytes(vmsa))
        guest.go()
        assert guest.data(1) == run_context_ended(ExitCode.SHUTDOWN)


def test_no_supervisor_code_at_vmpl_2() -> None:
    """A gate to ring 0 leads to the first instruction, which the RMP refuses; with the right it would run."""
    for rights, answer in ((0x7, run_context_ended(ExitCode.NPF)), (0xF, DONE)):
        with EnclaveGuest(enter(0) + store(1), "ud2") as guest:
            code = guest.code_of(0)
            guest.top.write(code + 0x800, assemble(VMGEXIT, code + 0x800))
            gate = struct.pack("<HHBBHII", code + 0x800 & 0xFFFF, 0x08, 0, 0xEE, code >> 16, 0, 0)
            guest.top.write(guest.registers(0).idtr.base + 6 * 16, gate)
            guest.top.write_u64(guest.registers(0).gdtr.base + 8, 0x00AF9B000000FFFF)
            guest.top.write_u64(guest.registers(0).tr.base + 4, code + 0x700)
            guest.permit(code, rights, 2)
            guest.go()
            assert guest.data(1) == answer


def test_what_the_host_does_not_run() -> None:
    """VMSAs of other levels, of nobody, an enclave's that was not registered or is no VMSA any more, odd numbers."""
    guest = EnclaveGuest("nop", f"inc qword ptr [{SHARED_DATA}]\n{VMGEXIT}")
    unregistered, freed = guest.vmsa_of(1), guest.vmsa_of(2)
    others = [guest.make_context(FREE + level * PAGE, vmpl=level, cpl=0).vmsa_pa for level in (0, 1, 3)]
    requests = [
        *map(run_context_request, (*others, VMSA, unregistered, freed, FREE + 0x10000, 0xFFFFFF000)),
        run_context_request(guest.vmsa_of(0)) & ~(3 << 32) | 1 << 32,
        run_context_request(guest.vmsa_of(0)) | 1 << 32,
        run_context_request(guest.vmsa_of(0)) | 1 << 12,
        run_context_request(guest.vmsa_of(0)) | 1 << 35,
        2 << 32 | 0x16,
    ]
    guest.put(
        "cli\n" + "".join(enter_request(value) + store(1 + number) for number, value in enumerate(requests)) + "hlt"
    )
    with guest:
        guest.make_enclave(1, "1: jmp 1b", register=False)
        guest.make_enclave(2, "1: jmp 1b")
        assert guest.top.rmpadjust(freed, vmpl=3, permissions=0, vmsa=False) == RmpResult.SUCCESS
        guest.go()
        assert [guest.data(1 + number) for number in range(len(requests))] == [RUN_VMPL_REFUSED] * len(requests)
        assert guest.data(0) == 0
        assert guest.registers(0).rip == guest.code_of(0)


def test_one_context_on_two_vcpus() -> None:
    """The second gets an error answer, until the first has left."""
    first = enter(0) + store(1)
    second = f"1: cmp qword ptr [{SHARED_DATA}], 0\nje 1b\n{enter(0)}{store(2)}inc qword ptr [{SHARED_DATA + 64}]\n"
    third = f"2: cmp qword ptr [{SHARED_DATA + 72}], 0\nje 2b\n{enter(0)}{store(3)}"
    enclave = (
        f"inc qword ptr [{SHARED_DATA}]\n1: cmp qword ptr [{SHARED_DATA + 64}], 0\nje 1b\n{VMGEXIT}"
        f"inc qword ptr [{SHARED_DATA}]\n{VMGEXIT}"
    )
    with EnclaveGuest([first, second + third], enclave) as guest:
        guest.go()
        assert (guest.data(1), guest.data(2), guest.data(0)) == (DONE, RUN_VMPL_REFUSED, 1)
        guest.top.write_u64(SHARED_DATA + 72, 1)
        other = guest.hypervisor.vcpus[1]
        guest.hypervisor.run(lambda: other.state == RunState.HALTED, timeout=10)
        assert (guest.data(3), guest.data(0)) == (DONE, 2)


def running(*enclaves: str, vcpus: int = 1) -> EnclaveGuest:
    """VCPU 0 is in an enclave that loops."""
    guest = EnclaveGuest([enter(0) + store(1) + "2: hlt\njmp 2b", *["1: pause\njmp 1b"] * (vcpus - 1)], *enclaves)
    first = guest.hypervisor.vcpus[0]
    guest.hypervisor.run(lambda: first.vmpl == 2, timeout=10)
    return guest


def test_one_that_is_no_vmsa_any_more_while_it_runs() -> None:
    """As VeilMon drops it: SVME is cleared on another VCPU."""
    with running("1: jmp 1b") as guest:
        vmsa = guest.vmsa_of(0)
        guest.top.write_u64(vmsa + Vmsa.efer.offset, guest.registers(0).efer & ~0x1000)
        guest.go()
        assert guest.data(1) == RUN_VMPL_REFUSED


def test_one_that_is_taken_from_the_host_while_it_runs() -> None:
    with running("1: jmp 1b") as guest:
        assert guest.hypervisor.drop_enclave(guest.vmsa_of(0))
        guest.go()
        assert guest.data(1) == RUN_VMPL_REFUSED
        assert not guest.hypervisor.drop_enclave(guest.vmsa_of(0))


@pytest.mark.parametrize("how", ["dropped", "replaced", "waits for INIT"])
def test_a_vcpu_taken_off_line_leaves_its_enclave(how: str) -> None:
    """Another VCPU can run it then."""
    with running(f"inc qword ptr [{SHARED_DATA + 64}]\n1: cmp qword ptr [{SHARED_DATA}], 0\nje 1b\n{VMGEXIT}") as guest:
        vcpu = guest.hypervisor.vcpus[0]
        if how == "dropped":
            vcpu.drop_vmsa(3)
            assert (vcpu.current, vcpu.state) == (None, RunState.PARKED)
            vcpu.set_vmsa(3, VMSA)
            vcpu.start(3)
        else:
            context = vcpu.set_vmsa(3, VMSA)
            assert (vcpu.vmpl, vcpu.is_busy_above(3)) == (3, False)
            context.on_init = how == "waits for INIT"
            if context.on_init:
                vcpu.state = RunState.WAIT_SIPI
                guest.hypervisor.init(0)
                assert vcpu.state == RunState.RUNNABLE
        guest.top.write_u64(SHARED_DATA, 1)
        guest.put("cli\n" + enter(0) + store(2) + "hlt", FREE)
        guest.top.write_u64(VMSA + Vmsa.rip.offset, FREE)
        guest.go()
        assert (guest.data(1), guest.data(2), guest.data(8)) == (0, DONE, 1)


def test_in_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that goes on in the middle of an enclave, with an event that was cut off, and enclaves that wait."""
    enclave = f"1: cmp qword ptr [{SHARED_DATA}], 0\nje 1b\n{VMGEXIT}"
    with running(enclave, "nop") as guest:
        waiting = guest.hypervisor.enclaves.get(guest.vmsa_of(1))
        assert waiting is not None
        waiting.vmcb.event_inj = 1 << 31 | 0x80
        state = json.dumps(to_plain(guest.hypervisor.dump()))
        again = Hypervisor(guest.machine, FakePlatform(), monitor=True)
        # There is no hosted code.
        monkeypatch.setattr(guest.machine, "attach_vmcb", lambda vmcb: None)
        again.load(from_plain(json.loads(state)))
        assert again.dump() == guest.hypervisor.dump()
        assert again.vcpus[0].current is again.enclaves.get(guest.vmsa_of(0))
        guest.hypervisor = again
        guest.top.write_u64(SHARED_DATA, 1)
        guest.go()
        assert guest.data(1) == DONE


@pytest.mark.parametrize("change", [{"enclaves": [{"vmsa": "x"}]}, {"enclaves": [{}]}, {"enclaves": 5}])
def test_a_snapshot_with_nonsense(change: dict[str, Any]) -> None:
    with running("1: jmp 1b") as guest:
        state = guest.hypervisor.dump()
        with pytest.raises(HostError, match="snapshot"):
            Hypervisor(guest.machine, FakePlatform(), monitor=True).load({**state, **change})


def test_a_snapshot_in_an_enclave_that_it_lacks() -> None:
    with running("1: jmp 1b") as guest:
        state = guest.hypervisor.dump()
        with pytest.raises(HostError, match="VCPU 0 is damaged"):
            Hypervisor(guest.machine, FakePlatform(), monitor=True).load({**state, "enclaves": []})


def test_the_kernel_may_not_have_the_host_take_a_context() -> None:
    with EnclaveGuest("nop", "nop") as guest:
        host = guest.hypervisor
        kernel, vmsa = host.vcpus[0].contexts[3], guest.vmsa_of(0)
        assert not host.may_name(kernel, vmsa, PAGE)
        assert not host.may_name(kernel, vmsa & -0x200000, 0x200000)
        assert host.may_name(kernel, vmsa + PAGE, PAGE)
        assert host.may_name(kernel, vmsa - PAGE, PAGE)


@pytest.mark.parametrize("level", [0, 1])
def test_an_endless_loop_does_not_keep_veilmon_and_the_services_from_running(level: int) -> None:
    """They are entered each second, and for the channel, in the enclave's place as in the kernel's."""
    with running("1: jmp 1b") as guest:
        host, vcpu = guest.hypervisor, guest.hypervisor.vcpus[0]
        entered = f"inc qword ptr [{SHARED_DATA}]\n" + enter_request(3 << 32 | 0x16)
        guest.put(f"cli\n1: {entered}jmp 1b", FREE)
        context = vcpu.set_vmsa(level, guest.make_context(FREE + PAGE, vmpl=level, rip=FREE).vmsa_pa)
        assert context.vmpl == level
        if level == 1:
            for gpa in (*TABLES, FREE, SHARED_DATA, 0x9000):
                guest.permit(gpa, 0xF, 1)
        assert host.kernel_end.may_enter(vcpu, level)
        vcpu.start(level)
        guest.go()
        assert (guest.data(0), guest.data(1)) == (1, DONE)


def test_only_the_kernel_enters() -> None:
    """VeilMon and the services have no way back from one."""
    with EnclaveGuest("nop", f"inc qword ptr [{SHARED_DATA}]\n{VMGEXIT}") as guest:
        host, vcpu = guest.hypervisor, guest.hypervisor.vcpus[0]
        assert not host.enter_enclave(vcpu, vcpu.set_vmsa(1, FREE), guest.vmsa_of(0))


def test_counted() -> None:
    with EnclaveGuest(enter(0) * 5, f"1: {VMGEXIT}jmp 1b") as guest:
        guest.go()
        assert guest.hypervisor.counters() == {"exit VMGEXIT": 10, "exit HLT": 1, "msr RUN_VMPL": 10}
        # VCPU 0's kernel is looked at by Python once, before the machine switches.
        assert guest.machine.counters.switches == (8 if EnclaveGuest.switches_by_machine else 0)


def test_switches_without_end_end_at_the_deadline_and_when_somebody_asks() -> None:
    with EnclaveGuest(f"7: {enter(0)}jmp 7b", f"1: {VMGEXIT}jmp 1b") as guest:
        assert guest.hypervisor.run(timeout=0.02) is RunResult.TIMEOUT
        posted: list[int] = []
        timer = threading.Timer(0.02, lambda: guest.hypervisor.post(lambda: posted.append(1)))
        timer.start()
        assert guest.hypervisor.run(lambda: bool(posted), timeout=10) is RunResult.DONE
        timer.join()
        assert guest.hypervisor.counters()["msr RUN_VMPL"] > 4


def test_interrupts_come_between_switches() -> None:
    """The kernel takes each as soon as it lets them in, and each is acknowledged once."""
    with EnclaveGuest(f"7: {enter(0)}sti\nnop\ncli\njmp 7b", f"1: {VMGEXIT}jmp 1b") as guest:
        # The handler halts; then the next is due a while later.
        def due(now: int) -> None:
            guest.platform.vectors[0] = [0x31]

        guest.platform.on_tick = due
        for times in range(1, 6):
            guest.platform.deadline = time.monotonic_ns() + 2_000_000
            guest.hypervisor.device_accessed = True
            guest.go()
            assert guest.trap().times == times
            assert guest.platform.log == [("ack", 0)] * times
            guest.resume_kernel()


def test_two_kernels_and_their_enclaves() -> None:
    """Each answer that says it was done stands for one entry, whoever else wants the same context."""
    entries = f"""
        mov r15d, 3000
    7:  {enter(0)}
        test edx, edx
        jnz 8f
        inc r14
    8:  {enter(1)}
        test edx, edx
        jnz 9f
        inc r14
    9:  dec r15d
        jnz 7b
    """
    with EnclaveGuest([entries] * 2, *[f"1: inc rbx\n{VMGEXIT}jmp 1b"] * 2) as guest:
        kernels = [vcpu.contexts[3].vmcb.vmsa_pa for vcpu in guest.hypervisor.vcpus]
        guest.hypervisor.run(lambda: all(vcpu.state == RunState.HALTED for vcpu in guest.hypervisor.vcpus), timeout=60)
        done = sum(guest.vmsa(kernel).r14 for kernel in kernels)
        assert done == sum(guest.registers(number).rbx for number in range(2))
        assert done > 6000
