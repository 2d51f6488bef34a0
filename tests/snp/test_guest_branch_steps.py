# SPDX-License-Identifier: GPL-2.0-or-later
"""Branch single steps: with DebugCtl.BTF and RFLAGS.TF #DB comes behind control transfers, and behind nothing else."""

from __future__ import annotations

import pytest

from tests.small_guest import CODE, FREE, STACK, VMSA, SmallGuest
from veil.snp import ExitCode
from veil.snp.layouts import SevFeatures

_DB = 1
_TF, _BTF = 1 << 8, 1 << 1
_DR6, _BS = 0xFFFF0FF0, 1 << 14
_DEBUGCTL = 0x1D9


def _guest(code: str, *, dbgctl: int = _BTF, rflags: int = 2 | _TF, cpl: int = 0, **fields: int) -> SmallGuest:
    """There begins each: what is stepped over from its first instruction on."""
    guest = SmallGuest(code, cpl=cpl)
    _set(guest, dbgctl=dbgctl, rflags=rflags, lstar=CODE + 0x100, star=8 << 32, **fields)
    guest.put("hlt", CODE + 0x100)
    return guest


def _set(guest: SmallGuest, **fields: int) -> None:
    vmsa = guest.vmsa()
    for name, value in fields.items():
        setattr(vmsa, name, value)
    guest.top.write(VMSA, bytes(vmsa))


def _expect_trap(guest: SmallGuest, rip: int) -> None:
    assert guest.run() == ExitCode.HLT
    trap = guest.trap()
    assert (trap.vector, trap.rip, trap.times) == (_DB, rip, 1)
    assert guest.vmsa().dr6 == _DR6 | _BS


TRANSFERS = {
    "jmp": "jmp 1f\nnop\n1: hlt",
    "jmp, with a prefix": "bnd jmp 1f\nnop\n1: hlt",
    "jmp to what follows": "jmp 1f\n1: hlt",
    "jmp by a register": "lea rbx, [rip + 1f]\njmp rbx\nnop\n1: hlt",
    "jmp by memory": "lea rbx, [rip + 1f]\npush rbx\njmp [rsp]\nnop\n1: hlt",
    "jcc": "cmp eax, eax\nje 1f\nnop\n1: hlt",
    "near jcc": f"cmp eax, eax\nje 1f\n{'nop;' * 200}\n1: hlt",
    "loop": "mov ecx, 2\nloop 1f\nnop\n1: hlt",
    "jrcxz": "xor ecx, ecx\njrcxz 1f\nnop\n1: hlt",
    "call to what follows": "call 1f\n1: hlt",
    "call by a register of the upper half": "lea r9, [rip + 1f]\ncall r9\nnop\n1: hlt",
    "ret": "lea rbx, [rip + 1f]\npush rbx\nret\nnop\n1: hlt",
    "ret that pops": "push rbx\nlea rbx, [rip + 1f]\npush rbx\nret 8\nnop\n1: hlt",
    "far ret": "lea rbx, [rip + 1f]\npush 8\npush rbx\nretfq\nnop\n1: hlt",
    "iret": f"mov rdx, rsp\npush 16\npush rdx\npush {2 | _TF}\npush 8\nlea rbx, [rip + 1f]\npush rbx\niretq\n1: hlt",
}


@pytest.mark.parametrize("code", TRANSFERS.values(), ids=TRANSFERS)
def test_it_comes_behind_a_transfer(code: str) -> None:
    with _guest(code) as guest:
        end = guest.top.read(CODE, 0x100).rindex(b"\xf4")
        _expect_trap(guest, CODE + end)


def test_it_comes_behind_syscall() -> None:
    with _guest("mov eax, 1\nsyscall\nhlt") as guest:
        _expect_trap(guest, CODE + 0x100)


OTHERS = {
    "moves": "mov eax, 1\npush rax\npop rbx\nlea rcx, [rbx]",
    "jcc that is not taken": "cmp eax, eax\njne 1f\n1: mov eax, 1",
    "loop at its end": "mov ecx, 1\nloop 1f\n1: mov eax, 1",
    "a string instruction and its iterations": f"mov ecx, 3\nmov edi, {FREE}\nmov esi, {FREE + 64}\nrep movsb",
    "push by an operand": "push [rsp]\ninc dword ptr [rsp]\npop rax",
    "another opcode map": "movzx eax, al\nsetz al\nbswap eax",
    "popf": f"push {2 | _TF}\npopfq",
    "page tables": "mov rax, cr3\nmov cr3, rax",
    "sti": "sti\nnop",
    "an instruction of SNP's": f"mov eax, {FREE}\nmov ecx, 3\n.byte 0xf3, 0x0f, 0x01, 0xfd",
    "pause": "pause",
}


@pytest.mark.parametrize("code", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("dbgctl", [_BTF, 0], ids=["branches", "each"])
def test_it_comes_behind_nothing_else(code: str, dbgctl: int) -> None:
    """HLT halts, where a single step would end it."""
    with _guest(f"{code}\nhlt", dbgctl=dbgctl) as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == (0 if dbgctl else 1)
        assert guest.vmsa().dbgctl == dbgctl
        assert (guest.vmsa().dr6 == _DR6) is bool(dbgctl)


def test_it_takes_btf_away() -> None:
    """So its handler is not stepped through, and who wants the next one asks again."""
    with _guest("jmp 1f\n1: nop\njmp 2f\n2: hlt") as guest:
        _expect_trap(guest, CODE + 2)
        assert guest.vmsa().dbgctl == 0
        _set(guest, dbgctl=_BTF)
        assert guest.run() == ExitCode.HLT  # the handler's IRET, which did not begin with TF
        assert (guest.trap().rip, guest.trap().times) == (CODE + 5, 2)
        assert guest.run() == ExitCode.HLT
        assert (guest.trap().rip, guest.trap().times) == (CODE + 5 + 1, 3), "each instruction again"


def test_the_guest_asks_for_it() -> None:
    code = (
        f"mov ecx, {_DEBUGCTL:#x}\nmov eax, {_BTF}\nxor edx, edx\nwrmsr\nrdmsr\nmov ebx, eax\n"
        f"pushfq\nor dword ptr [rsp], {_TF}\npopfq\nnop\njmp 1f\nnop\n1: hlt"
    )
    with _guest(code, dbgctl=0, rflags=2) as guest:
        end = guest.top.read(CODE, 0x100).rindex(b"\xf4")
        _expect_trap(guest, CODE + end)
        assert guest.vmsa().rbx == _BTF


def test_without_tf_there_is_none() -> None:
    with _guest("jmp 1f\n1: call 2f\n2: hlt", rflags=2) as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == 0
        assert guest.vmsa().dbgctl == _BTF


@pytest.mark.parametrize("code", ["int 0x30\nhlt", "ud2\nhlt"])
def test_events_are_none_of_them(code: str) -> None:
    """Their delivery clears TF first."""
    with _guest(code) as guest:
        assert guest.run() == ExitCode.HLT
        assert (guest.trap().vector, guest.trap().times) == (0x30 if "int" in code else 6, 1)
        assert guest.vmsa().dr6 == _DR6


def test_a_breakpoint_of_data_comes_all_the_same() -> None:
    at = FREE + 0x100
    write_4_at_dr0 = 0x400 | 2 | 0b1101 << 16
    code = f"mov edi, {at}\nmov [rdi], eax\nnop\njmp 1f\n1: hlt"
    features = int(SevFeatures.SNP | SevFeatures.DEBUG_SWAP)
    with _guest(code, sev_features=features, dr0=at, dr7=write_4_at_dr0) as guest:
        assert guest.run() == ExitCode.HLT
        assert (guest.trap().vector, guest.trap().rip) == (_DB, CODE + 7)
        assert guest.vmsa().dr6 == _DR6 | 1


def test_in_a_program() -> None:
    with _guest("nop\njmp 1f\nnop\n1: jmp 1b", cpl=3) as guest:
        _expect_trap(guest, CODE + 4)


def test_a_debugger_steps_meanwhile() -> None:
    with _guest("nop\nmov eax, 1\njmp 1f\nnop\n1: hlt") as guest:
        guest.machine.set_single_step(True)
        places = []
        for _ in range(3):
            assert guest.run() == ExitCode.INTR
            places.append(guest.vmsa().rip)
        assert places[:2] == [CODE + 1, CODE + 6]
        assert guest.vmsa().dr6 == _DR6 | _BS, "the jump, and its trap"
        assert int.from_bytes(guest.top.read(STACK - 40, 8), "little") == CODE + 9
        assert guest.vmsa().rflags & _TF == 0
