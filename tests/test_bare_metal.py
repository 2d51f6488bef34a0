# SPDX-License-Identifier: GPL-2.0-or-later
"""The bare-metal API as its users have it: honest hosts and hostile ones, steps, and what is refused."""

from __future__ import annotations

import pytest

from veil.bare_metal import (
    CODE,
    FREE,
    SHARED,
    BareGuest,
    Context,
    Exit,
    ExitCode,
    Host,
    NestedFault,
    PageState,
    Permission,
    assemble,
)
from veil.errors import VeilError
from veil.formats.ghcb import MsrResponse
from veil.snp import RmpResult, RmpViolation, SnpError

VMGEXIT = ".byte 0xf3, 0x0f, 0x01, 0xd9"


def _request(low: str, high: str = "0") -> str:
    """By the GHCB MSR; the answer is in EDX:EAX."""
    return f"mov ecx, 0xC0010130\nmov eax, {low}\nmov edx, {high}\nwrmsr\n{VMGEXIT}\nrdmsr\n"


def test_code_runs_at_vmpl_0() -> None:
    with BareGuest(assemble("mov eax, 42\nhlt")) as guest:
        exit = guest.run()
        assert (exit.code, exit.context) == (ExitCode.HLT, guest.context(0))
        assert guest.context(0).registers.rax == 42
        assert guest.page(CODE) == PageState(True, True, False, (Permission.ALL, *(Permission(0),) * 3))


def test_registers_are_set_before_a_run() -> None:
    with BareGuest(assemble("add rax, rbx\nhlt")) as guest:
        registers = guest.context(0).registers
        registers.rax, registers.rbx = 40, 2
        guest.run()
        assert registers.rax == 42
        with pytest.raises(AttributeError, match="no field 'raxx'"):
            registers.raxx = 1


def test_an_honest_host_answers() -> None:
    share = _request(f"{FREE | 0x014:#x}", f"{2 << 20:#x}")
    source = f"{_request('0x080')}mov r8d, eax\n{share}mov qword ptr [{SHARED + FREE}], 7\nhlt"
    with BareGuest(assemble(source)) as guest:
        assert guest.run().code == ExitCode.HLT
        assert guest.context(0).registers.r8 == 1 << 12 | MsrResponse.HV_FEATURES
        assert guest.context(0).registers.rax == MsrResponse.PAGE_STATE_CHANGE
        assert guest.page(FREE)[:2] == (False, False)
        assert guest.host.read_u64(FREE) == 7
        assert [exit.code for exit in guest.exits] == [ExitCode.VMGEXIT] * 2 + [ExitCode.HLT]


class _Liar(Host):
    """Says that it has taken the page, and has not."""

    def page_state_change(self, guest: BareGuest, context: Context, gpa: int, private: bool) -> bool:
        return True


def test_a_host_that_lies() -> None:
    share = _request(f"{FREE | 0x014:#x}", f"{2 << 20:#x}")
    with BareGuest(assemble(f"{share}mov qword ptr [{SHARED + FREE}], 7\nhlt"), host=_Liar()) as guest:
        exit = guest.run()
        assert (exit.code, exit.exit_info_2) == (ExitCode.NPF, FREE)
        assert NestedFault(exit.exit_info_1) & NestedFault.RMP
        assert guest.page(FREE).validated


class _Thief(Host):
    """Takes a page away when it is asked for something."""

    def request(self, guest: BareGuest, context: Context, request: int) -> Context | None:
        guest.host.rmpupdate(FREE, assigned=False)
        return super().request(guest, context, request)


def test_a_host_that_steals_a_page() -> None:
    source = f"mov qword ptr [{FREE}], 7\n{_request('0x080')}mov rbx, [{FREE}]\nhlt"
    with BareGuest(assemble(source), host=_Thief()) as guest:
        exit = guest.run()
        assert (exit.code, exit.exit_info_2) == (ExitCode.NPF, FREE)
        assert guest.context(0).registers.rbx == 0


def test_a_host_that_gives_another_page_for_it() -> None:
    """What the guest validated is gone: it must be asked to validate again, which it notices."""
    with BareGuest(assemble(f"mov rbx, [{FREE}]\nhlt")) as guest:
        guest.put(FREE, b"\x07")
        assert guest.host.rmpupdate(FREE, assigned=False) == RmpResult.SUCCESS
        assert guest.host.rmpupdate(FREE, assigned=True) == RmpResult.SUCCESS
        # #VC, and there is no handler.
        assert guest.run().code == ExitCode.SHUTDOWN
        assert guest.context(0).registers.cr2 == FREE


def test_steps() -> None:
    with BareGuest(assemble(f"mov eax, 1\nadd eax, 2\n{VMGEXIT}\nadd eax, 4\nhlt")) as guest:
        seen = []
        for _ in range(3):
            exit = guest.step()
            seen.append((exit.stepped, guest.context(0).registers.rax))
        assert seen == [(True, 1), (True, 3), (False, 3)]
        assert guest.exits[-1].code == ExitCode.VMGEXIT
        assert guest.step().stepped
        assert guest.context(0).registers.rax == 7
        assert guest.run().code == ExitCode.HLT


def test_levels() -> None:
    with BareGuest(assemble(f"{_request('0x016', '2')}hlt")) as guest:
        guest.put(FREE, assemble(f"mov rbx, [{FREE + 0x1000}]\nmov [{FREE + 0x1000}], rbx\nhlt", FREE))
        guest.permit(0, 2, pages=256)
        guest.permit(FREE, 2)
        guest.permit(FREE + 0x1000, 2, Permission.R)
        guest.put(FREE + 0x1000, b"\x09")
        low = guest.add_context(2, rip=FREE)
        exit = guest.run()
        assert (exit.context, exit.code, exit.exit_info_2) == (low, ExitCode.NPF, FREE + 0x1000)
        assert NestedFault(exit.exit_info_1) & (NestedFault.VMPL | NestedFault.WRITE) == 1 << 36 | 2
        assert low.registers.rbx == 9
        assert guest.page(low.vmsa).vmsa
        with pytest.raises(RmpViolation):
            guest.view(2).read(low.vmsa, 8)


def test_several_vcpus() -> None:
    with BareGuest(assemble("mov eax, 1\nhlt")) as guest:
        guest.put(FREE, assemble("mov eax, 2\nhlt", FREE))
        second = guest.add_context(0, rip=FREE, vcpu=1)
        assert guest.run().context.vcpu == 0
        guest.next = second
        assert guest.run() == Exit(second, ExitCode.HLT, 0, 0, 0)
        assert (guest.context(0).registers.rax, guest.context(0, 1).registers.rax) == (1, 2)


def test_code_that_does_not_end() -> None:
    with BareGuest(assemble("again: jmp again")) as guest:
        with pytest.raises(TimeoutError, match=f"at {CODE:#x}"):
            guest.run(seconds=0.1)
        assert guest.vmrun(guest.context(0), seconds=0.01).code == ExitCode.INTR
        assert len(guest.exits) <= 1000


@pytest.mark.parametrize("memory", [0, -1, 1, 3 << 20, 2 << 30])
def test_memory_that_cannot_be(memory: int) -> None:
    with pytest.raises(SnpError):
        BareGuest(memory=memory)


def test_contexts_that_cannot_be() -> None:
    with BareGuest() as guest:
        for vmpl, vcpu in ((0, 0), (4, 0), (-1, 1), (0, 99)):
            with pytest.raises(SnpError):
                guest.add_context(vmpl, rip=CODE, vcpu=vcpu)


def test_what_is_wrong_in_assembly_is_one_line() -> None:
    with pytest.raises(VeilError, match=r"^as: .*no such instruction: `nonsense'$"):
        assemble("nop\nnonsense")
    with pytest.raises(VeilError, match=r"^ld: .*undefined reference"):
        assemble("call nowhere")
