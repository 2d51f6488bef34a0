# SPDX-License-Identifier: GPL-2.0-or-later
"""What a level may use whatever the instruction: SMAP, stacks of far transfers, UMIP (APM volume 2, 3.1.3 and 5.6)."""

from __future__ import annotations

import pytest

from tests.machine_code import assemble
from tests.small_guest import CODE, FREE, IDT, PAGE, SmallGuest
from veil.formats.registers import Cr4, Rflags
from veil.snp import ExitCode
from veil.snp.layouts import VmsaSegment

_UD, _GP, _PF = 6, 13, 14
#: a page of programs, and one of the kernel alone
_USER, _KERNEL = FREE, FREE + 2 * PAGE
_USER_STACK = FREE + PAGE + 2048
_PRESENT, _WRITE, _BY_USER = 1, 2, 4

_READS = {
    "mov": f"mov rax, [{_USER}]",
    "pop": f"mov rsp, {_USER}\npop rax",
    "lods": f"mov esi, {_USER}\nlodsq",
    "movups": f"movups xmm0, [{_USER}]",
    "lea and call": f"mov rax, {_USER}\ncall [rax]",
    "retf": f"mov rsp, {_USER}\nretfq",
    "iret": f"mov rsp, {_USER}\niretq",
    "lgdt": f"lgdt [{_USER}]",
    # The core reads first.
    "xchg": f"xchg [{_USER}], rax",
    "cmpxchg16b": f"lock cmpxchg16b [{_USER}]",
    "PVALIDATE": f"mov rax, {_USER}\nxor ecx, ecx\nmov edx, 1\n.byte 0xf2, 0x0f, 0x01, 0xff",
}
_WRITES = {
    "mov": f"mov [{_USER}], rax",
    "push": f"mov rsp, {_USER + 8}\npush rax",
    "stos": f"mov edi, {_USER}\nmov ecx, 2\nrep stosq",
    "fxsave": f"fxsave [{_USER}]",
    "sgdt": f"sgdt [{_USER}]",
    "int": f"mov rsp, {_USER + 40}\nint 0x30",
}
_ACCESSES = [
    *(pytest.param(code, _PRESENT, id=f"{name} reads") for name, code in _READS.items()),
    *(pytest.param(code, _PRESENT | _WRITE, id=f"{name} writes") for name, code in _WRITES.items()),
]


def _guest(code: str, *, cpl: int = 0, cr4: int = Cr4.SMAP, rflags: int = 0) -> SmallGuest:
    """The first two free pages and the code are for programs."""
    guest = SmallGuest(code, cpl=cpl)
    guest.make_kernels_own(CODE, _USER, _USER + PAGE)
    # An exception within a stack that is not allowed has one of its own.
    guest.top.write_u64(0xC000 + 0x24, _KERNEL + 2 * PAGE)
    for vector in (_UD, _GP, _PF):
        guest.top.write_u8(IDT + 16 * vector + 4, 1)
    vmsa = guest.vmsa()
    vmsa.cr4 |= cr4
    vmsa.rflags |= rflags
    if cpl:
        vmsa.rsp = _USER_STACK
    guest.top.write(guest.vmcb.vmsa_pa, bytes(vmsa))
    return guest


def _is_refused(guest: SmallGuest) -> bool:
    assert guest.run() == ExitCode.HLT
    trap = guest.trap()
    return trap.times == 1 and trap.vector == _PF


@pytest.mark.parametrize(("code", "error"), _ACCESSES)
def test_the_kernel_has_no_access_to_a_programs_page(code: str, error: int) -> None:
    with _guest(f"{code}\nhlt") as guest:
        assert _is_refused(guest)
        assert guest.trap().error_code == error
        assert guest.vmsa().cr2 & ~0xFFF == _USER


@pytest.mark.parametrize(("code", "error"), _ACCESSES)
@pytest.mark.parametrize("by", ["STAC", "no SMAP"])
def test_unless_it_says_so(code: str, error: int, by: str) -> None:
    code, cr4 = (f"stac\n{code}", Cr4.SMAP) if by == "STAC" else (code, 0)
    with _guest(f"{code}\nhlt", cr4=cr4) as guest:
        guest.run()
        assert guest.trap().vector != _PF


def test_clac_and_stac_change_this_flag_alone() -> None:
    with _guest("stac\nhlt\nclac\nhlt", rflags=Rflags.CF | Rflags.DF | Rflags.OF) as guest:
        before = guest.vmsa().rflags
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rflags == before | Rflags.AC
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rflags == before
        assert guest.trap().times == 0


@pytest.mark.parametrize("code", ["clac", "stac"])
def test_a_program_has_neither(code: str) -> None:
    with _guest(code, cpl=3) as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap()[:3] == (_UD, 0, CODE)


def test_the_flag_is_the_contexts() -> None:
    """Set in a VMSA it holds from the first instruction; what is in the TLB by then does not outlast it."""
    load = f"mov rax, [{_USER}]"
    with _guest(f"{load}\nhlt\nclac\n{load}\nhlt", rflags=Rflags.AC) as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == 0
        assert _is_refused(guest)


def test_a_program_that_used_its_page_opens_it_to_no_one() -> None:
    program = f"mov rax, [{_USER}]\nint 0x30"
    with _guest(program, cpl=3) as guest:
        guest.put(f"mov rax, [{_USER}]\nhlt", at=_KERNEL)
        for at, part in ((0, _KERNEL & 0xFFFF), (6, _KERNEL >> 16)):  # the gate's offset
            guest.top.write(IDT + 16 * 0x30 + at, part.to_bytes(2, "little"))
        assert _is_refused(guest)
        assert guest.trap().rip == _KERNEL


def test_mov_to_cr4_takes_effect_at_once() -> None:
    load = f"mov rbx, [{_USER}]"
    with _guest(f"{load}\nmov rax, cr4\nor rax, {int(Cr4.SMAP)}\nmov cr4, rax\n{load}\nhlt", cr4=0) as guest:
        assert _is_refused(guest)
        assert guest.vmsa().cr4 & Cr4.SMAP


def test_an_event_keeps_the_flag_and_its_end_gives_it_back() -> None:
    # The handler of SmallGuest halts before its IRETQ.
    with _guest(f"stac\nint 0x30\nmov rax, [{_USER}]\nclac\nhlt") as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap().vector == 0x30
        assert guest.vmsa().rflags & Rflags.AC
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == 1


def test_code_of_a_programs_page_is_not_data() -> None:
    """SMAP has no say in fetches, SMEP has."""
    with _guest(f"mov rax, {_USER}\njmp rax") as guest:
        guest.put("mov ebx, 5\nhlt", at=_USER)
        assert guest.run() == ExitCode.HLT
        assert (guest.trap().times, guest.vmsa().rbx) == (0, 5)
    with _guest(f"mov rax, {_USER}\njmp rax", cr4=Cr4.SMAP | Cr4.SMEP) as guest:
        guest.make_kernels_own(_USER)
        assert _is_refused(guest)


@pytest.mark.parametrize("cpl", [0, 3])
@pytest.mark.parametrize("cr4", [Cr4.SMAP, 0], ids=["SMAP", "no SMAP"])
def test_what_the_processor_looks_up_is_in_the_kernels_pages(cpl: int, cr4: int) -> None:
    """A descriptor of an LDT, for which RFLAGS.AC says nothing."""
    with _guest("mov eax, 7\nmov fs, eax\nhlt\nint 0x30", cpl=cpl, cr4=cr4, rflags=Rflags.AC) as guest:
        vmsa = guest.vmsa()
        vmsa.ldtr = VmsaSegment(0x30, 0x82, 0xFF, _USER)
        guest.top.write(guest.vmcb.vmsa_pa, bytes(vmsa))
        guest.top.write_u64(_USER, 0x00CFF3000000FFFF)
        assert _is_refused(guest) == bool(cr4)
        if cr4:
            assert guest.trap().error_code == _PRESENT
            assert guest.vmsa().cr2 == _USER + 4 or guest.vmsa().cr2 == _USER
        else:
            assert guest.vmsa().fs.selector == 7


def _frame(stack: int) -> str:
    """What IRETQ takes back to `on`, from the top down, at a place that the kernel has prepared."""
    return f"mov rsp, {stack}\niretq\non: mov ebx, 5\nint 0x30"


def _write_frame(guest: SmallGuest, stack: int, code: str) -> None:
    back = CODE + len(assemble(code.split("on:")[0], CODE))
    for place, value in enumerate((back, 0x23, 0x202, _USER_STACK, 0x1B)):
        guest.top.write_u64(stack + 8 * place, value)


@pytest.mark.parametrize("cr4", [Cr4.SMAP, 0], ids=["SMAP", "no SMAP"])
@pytest.mark.parametrize("end", ["iretq", "retfq"])
def test_a_program_returns_within_its_level(end: str, cr4: int) -> None:
    code = _frame(_USER).replace("iretq", end)
    with _guest(code, cpl=3, cr4=cr4) as guest:
        _write_frame(guest, _USER, code)
        assert guest.run() == ExitCode.HLT
        assert guest.trap().vector == 0x30
        assert guest.vmsa().rbx == 5


@pytest.mark.parametrize("cr4", [Cr4.SMAP, 0], ids=["SMAP", "no SMAP"])
@pytest.mark.parametrize("end", ["iretq", "retfq"])
def test_a_program_does_not_return_by_way_of_the_kernels_memory(end: str, cr4: int) -> None:
    code = _frame(_KERNEL).replace("iretq", end)
    with _guest(code, cpl=3, cr4=cr4) as guest:
        _write_frame(guest, _KERNEL, code)
        assert _is_refused(guest)
        assert guest.trap().error_code == _PRESENT | _BY_USER
        assert guest.vmsa().cr2 == _KERNEL


@pytest.mark.parametrize("cr4", [Cr4.SMAP, 0], ids=["SMAP", "no SMAP"])
def test_a_programs_far_call_does_not_write_to_the_kernels_memory(cr4: int) -> None:
    code = f"mov rsp, {_KERNEL + 64}\n.byte 0x48\ncall fword ptr [{_USER}]"
    with _guest(code, cpl=3, cr4=cr4) as guest:
        guest.top.write_u64(_USER, _USER + 64)
        guest.top.write_u64(_USER + 8, 0x23)
        guest.put("mov ebx, 5\nint 0x30", at=_USER + 64)
        assert _is_refused(guest)
        assert guest.trap().error_code == _PRESENT | _WRITE | _BY_USER
        assert not any(guest.top.read(_KERNEL, 64))


def test_a_programs_far_call() -> None:
    with _guest(f".byte 0x48\ncall fword ptr [{_USER}]", cpl=3) as guest:
        guest.top.write_u64(_USER, _USER + 64)
        guest.top.write_u64(_USER + 8, 0x23)
        guest.put("mov ebx, 5\nint 0x30", at=_USER + 64)
        assert guest.run() == ExitCode.HLT
        assert (guest.trap().vector, guest.vmsa().rbx) == (0x30, 5)


_TELLING = {
    "sgdt": f"sgdt [{_USER}]",
    "sidt": f"sidt [{_USER}]",
    "sldt": "sldt eax",
    "sldt to memory": f"sldt [{_USER}]",
    "str": "str eax",
    "smsw": "smsw eax",
    "smsw to memory": f"smsw [{_USER}]",
}


@pytest.mark.parametrize("code", [pytest.param(code, id=name) for name, code in _TELLING.items()])
def test_instructions_that_tell_where_the_kernel_is(code: str) -> None:
    for cpl, cr4, refused in ((3, Cr4.UMIP, True), (3, 0, False), (0, Cr4.UMIP, False)):
        with _guest(f"{code}\nint 0x30", cpl=cpl, cr4=cr4) as guest:
            assert guest.run() == ExitCode.HLT
            expected = (_GP, 0, CODE) if refused else (0x30, 0)
            assert guest.trap()[: len(expected)] == expected
            assert guest.trap().times == 1
            assert any(guest.top.read(_USER, 16)) <= (not refused)
