# SPDX-License-Identifier: GPL-2.0-or-later
"""What events, IRET and far transfers refuse, with which exception and error code (APM volume 2, 4 and 8; volume 3)."""

from __future__ import annotations

import pytest

from tests.small_guest import CODE, FREE, IDT, PAGE, SHARED, STACK, VMSA, SmallGuest
from veil.snp import ExitCode
from veil.snp.layouts import VmsaSegment

_UD, _TS, _NP, _SS, _GP, _PF = 6, 10, 11, 12, 13, 14
_IDT_BIT, _EXTERNAL = 2, 1
_BEYOND = 1 << 47  # the first address that is not canonical
_GDT = 0x9000
_KERNEL_CODE, _KERNEL_DATA, _USER_DATA, _USER_CODE = 0x08, 0x10, 0x1B, 0x23
_PRESENT = 0x80
_VECTOR = 0x30
_V_IRQ, _V_IGN_TPR, _V_NMI, _V_NMI_ENABLE = 1 << 8, 1 << 20, 1 << 11, 1 << 26


def _in_idt(vector: int) -> int:
    return vector << 3 | _IDT_BIT


def _iret(rip: int, cs: int, ss: int) -> str:
    frame = "".join(f"mov rax, {value:#x}\npush rax\n" for value in (ss, STACK, 2, cs, rip))
    return f"{frame}mov rbx, offset there\nthere: iretq"


def _without_present(guest: SmallGuest, selector: int) -> None:
    at = _GDT + (selector & ~7) + 5
    guest.top.write_u8(at, guest.top.read_u8(at) & ~_PRESENT)


@pytest.mark.parametrize(
    ("rip", "cs", "ss", "vector", "error"),
    [
        (_BEYOND, _KERNEL_CODE, _KERNEL_DATA, _GP, 0),
        (_BEYOND, _USER_CODE, _USER_DATA, _GP, 0),
        (CODE, 0, _KERNEL_DATA, _GP, 0),
        (CODE, 3, _USER_DATA, _GP, 0),
        (CODE, _KERNEL_DATA, _KERNEL_DATA, _GP, _KERNEL_DATA),
        (CODE, 0x28, _KERNEL_DATA, _GP, 0x28),
        (CODE, _USER_CODE & ~3, _KERNEL_DATA, _GP, _USER_CODE & ~3),
        (CODE, _USER_CODE, _USER_DATA & ~3 | 2, _GP, _USER_DATA & ~3),
        (CODE, _USER_CODE, 0, _GP, 0),
        (CODE, _USER_CODE, _USER_CODE, _GP, _USER_CODE & ~3),
        (CODE, _USER_CODE, _KERNEL_DATA | 3, _GP, _KERNEL_DATA),
    ],
)
def test_iret_refuses(rip: int, cs: int, ss: int, vector: int, error: int) -> None:
    """The exception is IRET's own, at CPL 0: nothing of the frame has been taken."""
    with SmallGuest(_iret(rip, cs, ss)) as guest:
        assert guest.run() == ExitCode.HLT
        trap, vmsa = guest.trap(), guest.vmsa()
        assert (trap.vector, trap.error_code, trap.rip, trap.times) == (vector, error, vmsa.rbx, 1)
        assert (vmsa.cpl, vmsa.cs.selector) == (0, _KERNEL_CODE)


@pytest.mark.parametrize(("absent", "vector"), [(_USER_CODE, _NP), (_USER_DATA, _SS)])
def test_iret_to_a_segment_that_is_not_present(absent: int, vector: int) -> None:
    with SmallGuest(_iret(CODE, _USER_CODE, _USER_DATA)) as guest:
        _without_present(guest, absent)
        assert guest.run() == ExitCode.HLT
        assert guest.trap()[:3] == (vector, absent & ~3, guest.vmsa().rbx)


def test_iret_from_a_nested_task() -> None:
    with SmallGuest(f"push 0x4002\npopfq\n{_iret(CODE, _KERNEL_CODE, _KERNEL_DATA)}") as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap()[:3] == (_GP, 0, guest.vmsa().rbx)


def _gate(guest: SmallGuest, vector: int, *, kind: int | None = None, selector: int | None = None) -> None:
    if kind is not None:
        guest.top.write_u8(IDT + 16 * vector + 5, kind)
    if selector is not None:
        guest.top.write_u16(IDT + 16 * vector + 2, selector)


@pytest.mark.parametrize(
    ("kind", "vector"),
    [
        pytest.param(0xE5, _GP, id="task gate"),
        pytest.param(0xEC, _GP, id="call gate"),
        pytest.param(0xE6, _GP, id="16-bit gate"),
        pytest.param(0x8E, _GP, id="a gate of the kernel's own"),
        pytest.param(0x6E, _NP, id="not present"),
    ],
)
def test_a_programs_interrupt_by_a_gate_that_is_refused(kind: int, vector: int) -> None:
    with SmallGuest(f"int {_VECTOR}", cpl=3) as guest:
        _gate(guest, _VECTOR, kind=kind)
        assert guest.run() == ExitCode.HLT
        assert guest.trap() == (vector, _in_idt(_VECTOR), CODE, 1)


def test_a_vector_beyond_the_table() -> None:
    with SmallGuest("int 0x50") as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap() == (_GP, _in_idt(0x50), CODE, 1)


@pytest.mark.parametrize(("selector", "error"), [(0, 0), (_KERNEL_DATA, _KERNEL_DATA), (0x28, 0x28)])
def test_a_gate_with_a_bad_selector(selector: int, error: int) -> None:
    with SmallGuest(f"int {_VECTOR}") as guest:
        _gate(guest, _VECTOR, selector=selector)
        assert guest.run() == ExitCode.HLT
        assert guest.trap() == (_GP, error, CODE, 1)


def test_a_gate_that_leads_nowhere() -> None:
    with SmallGuest(f"int {_VECTOR}") as guest:
        guest.top.write_u32(IDT + 16 * _VECTOR + 8, _BEYOND >> 32)
        assert guest.run() == ExitCode.HLT
        assert guest.trap() == (_GP, 0, CODE, 1)


@pytest.mark.parametrize(
    ("interruption", "vector", "external"),
    [
        (_V_IRQ | _V_IGN_TPR | _VECTOR << 32, _VECTOR, True),
        (_V_NMI | _V_NMI_ENABLE, 2, True),
        pytest.param(0, _UD, False, id="#UD"),
    ],
)
def test_the_error_code_tells_whether_the_event_came_from_outside(
    interruption: int, vector: int, external: bool
) -> None:
    with SmallGuest("ud2") as guest:
        _gate(guest, vector, kind=0x0E)
        guest.vmcb.v_intr = interruption
        assert guest.run() == ExitCode.HLT
        assert guest.trap() == (_NP, _in_idt(vector) | (_EXTERNAL if external else 0), CODE, 1)


@pytest.mark.parametrize(
    "code",
    [
        "mov al, [rdx]",
        "mov [rdx], al",
        "call [rdx]",
        "movdqu xmm0, [rdx]",
        "lock inc dword ptr [rdx]",
        pytest.param("mov rax, [rdx - 1]", id="its last bytes"),
        "fxsave64 [rdx]",
        "lidt [rdx]",
        "rep movsb",
    ],
)
@pytest.mark.parametrize("address", [_BEYOND, (1 << 64) - _BEYOND - 0x1000, 0xAAAAAAAAAAAAAAAA])
@pytest.mark.parametrize("cpl", [0, 3])
def test_an_address_that_is_not_canonical(code: str, address: int, cpl: int) -> None:
    """#GP, not #PF: CR2 stays."""
    if code.startswith("lidt") and cpl:
        code = "mov al, [rdx]"
    if "- 1" in code and address != _BEYOND:
        address = _BEYOND
    with SmallGuest(f"mov rdx, {address:#x}\nmov rsi, rdx\nmov ecx, 1\n{code}", cpl=cpl) as guest:
        _map_the_last_page(guest)
        before = guest.vmsa().cr2
        assert guest.run() == ExitCode.HLT
        trap = guest.trap()
        assert (trap.vector, trap.error_code, trap.times) == (_GP, 0, 1)
        assert guest.vmsa().cr2 == before


def _map_the_last_page(guest: SmallGuest) -> None:
    """The last of the lower half, so that an access that begins there ends behind it."""
    tables = range(FREE + PAGE, FREE + 4 * PAGE, PAGE)
    link = 7 | 1 << 51
    root = guest.vmsa().cr3
    for table, entry in zip((root, *tables), (*tables, FREE), strict=True):
        guest.top.write_u64(table + 8 * (255 if table == root else 511), entry | link)


@pytest.mark.parametrize("code", ["jmp rdx", "call rdx", "push rdx\nret"])
def test_code_that_is_nowhere(code: str) -> None:
    with SmallGuest(f"mov rdx, {_BEYOND:#x}\n{code}") as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap()[:2] == (_GP, 0)


def test_sysret_to_nowhere_faults_in_the_program() -> None:
    """AMD's SYSRET does not look at RCX (APM volume 3): the fault is the program's own fetch."""
    with SmallGuest(f"mov rcx, {_BEYOND:#x}\nmov r11, 2\nsysretq") as guest:
        vmsa = guest.vmsa()
        vmsa.star = 0x0010_0008 << 32
        vmsa.efer |= 1
        guest.top.write(VMSA, bytes(vmsa))
        assert guest.run() == ExitCode.HLT
        assert guest.trap() == (_GP, 0, _BEYOND, 1)
        assert guest.top.read_u64(STACK - 32) == _USER_CODE


def test_an_event_whose_stack_is_nowhere() -> None:
    """#SS in the delivery of #UD is no double fault, and is delivered on a stack of its own."""
    with SmallGuest("ud2") as guest:
        guest.top.write_u64(0xC000 + 0x24, _BEYOND + PAGE)
        guest.top.write_u64(0xC000 + 0x2C, FREE + PAGE)
        guest.top.write_u8(IDT + 16 * _UD + 4, 1)
        guest.top.write_u8(IDT + 16 * _SS + 4, 2)
        assert guest.run() == ExitCode.HLT
        assert guest.trap() == (_SS, 0, CODE, 1)


def test_far_jumps() -> None:
    """To the task state segment, by which hardware switches tasks outside of long mode, and to nowhere."""
    jump = f"mov rdx, {FREE}\n.byte 0x48, 0xff, 0x2a"  # with an operand of 80 bits
    for target, selector, error in ((CODE, 0x28, 0x28), (_BEYOND, _KERNEL_CODE, 0)):
        with SmallGuest(jump) as guest:
            vmsa = guest.vmsa()
            vmsa.gdtr.limit = 0x37
            guest.top.write(VMSA, bytes(vmsa))
            guest.top.write_u64(_GDT + 0x28, 0x0000890000000067 | 0xC000 << 16)
            guest.top.write_u64(_GDT + 0x30, 0)
            guest.top.write_u64(FREE, target)
            guest.top.write_u16(FREE + 8, selector)
            assert guest.run() == ExitCode.HLT
            assert guest.trap()[:2] == (_GP, error)


_CODE_32 = 0x28


def _to_32_bits(then: str) -> str:
    return f"mov rax, {_CODE_32}\npush rax\nmov rax, offset legacy\npush rax\nretfq\n.code32\nlegacy: {then}\nhlt\n"


@pytest.mark.parametrize("instruction", ["sysenter", ".byte 0x0f, 0x35"], ids=["sysenter", "sysexit"])
@pytest.mark.parametrize("wrap", [str, _to_32_bits], ids=["64-bit mode", "compatibility mode"])
def test_sysenter_is_not_for_long_mode(instruction: str, wrap: object) -> None:
    assert callable(wrap)
    with SmallGuest(wrap(instruction)) as guest:
        vmsa = guest.vmsa()
        vmsa.gdtr.limit = 0x2F
        vmsa.sysenter_cs, vmsa.sysenter_eip, vmsa.sysenter_esp = _KERNEL_CODE, CODE, STACK
        guest.top.write(VMSA, bytes(vmsa))
        guest.top.write_u64(_GDT + _CODE_32, 0x00CF9B000000FFFF)
        assert guest.run() == ExitCode.HLT
        assert guest.trap()[:2] == (_UD, 0)


@pytest.mark.parametrize("attributes", [0, 0x0B])
def test_a_context_without_a_task_state_segment(attributes: int) -> None:
    """The stack for the event cannot be found, nor those for #TS and #DF. The host's process ended, too."""
    with SmallGuest("ud2", cpl=3) as guest:
        vmsa = guest.vmsa()
        vmsa.tr = VmsaSegment(0, attributes, 0x67, 0xC000)
        guest.top.write(VMSA, bytes(vmsa))
        assert guest.run() == ExitCode.SHUTDOWN
        assert guest.trap().times == 0


def test_ltr_takes_no_null_selector() -> None:
    """Else the next event from a program ended the host's process."""
    with SmallGuest("xor eax, eax\nltr ax") as guest:
        before = bytes(guest.vmsa().tr)
        assert guest.run() == ExitCode.HLT
        assert guest.trap()[:2] == (_GP, 0)
        assert bytes(guest.vmsa().tr) == before


@pytest.mark.parametrize("cpl", [0, 3])
@pytest.mark.parametrize("allowed", [False, True])
def test_performance_counters_are_programs_if_the_kernel_says_so(cpl: int, allowed: bool) -> None:
    with SmallGuest("xor ecx, ecx\nrdpmc", cpl=cpl) as guest:
        vmsa = guest.vmsa()
        vmsa.cr4 |= 1 << 8 if allowed else 0
        guest.top.write(VMSA, bytes(vmsa))
        assert guest.run() == ExitCode.HLT
        assert guest.trap()[:2] == ((_GP, 0) if cpl and not allowed else (29, ExitCode.RDPMC))


class _Legacy:
    """A guest in 32-bit protected mode: exceptions halt at `handler(vector)`."""

    def __init__(self, guest: SmallGuest, code: bytes, *, cr0: int = 0x11, cr3: int = 0, cr4: int = 0x40) -> None:
        self.guest = guest
        top = guest.top
        for index, entry in enumerate((0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFF3000000FFFF)):
            top.write_u64(FREE + 8 * index, entry)
        for vector in range(32):
            handler = self.handler(vector)
            gate = (handler & 0xFFFF) | 8 << 16 | 0x8E00 << 32 | (handler >> 16) << 48
            top.write_u64(FREE + 0x100 + 8 * vector, gate)
            top.write(handler, b"\xf4")
        top.write(CODE, code)
        vmsa = guest.vmsa()
        vmsa.cr0, vmsa.cr3, vmsa.cr4, vmsa.efer = cr0, cr3, cr4, 0x1000
        vmsa.cs = VmsaSegment(8, 0xC9B, 0xFFFFFFFF, 0)
        for name in ("ds", "es", "fs", "gs", "ss"):
            setattr(vmsa, name, VmsaSegment(16, 0xC93, 0xFFFFFFFF, 0))
        vmsa.gdtr, vmsa.idtr = VmsaSegment(0, 0, 31, FREE), VmsaSegment(0, 0, 0xFF, FREE + 0x100)
        vmsa.rip, vmsa.rsp, vmsa.rflags = CODE, STACK, 0x202
        vmsa.sysenter_cs, vmsa.sysenter_eip, vmsa.sysenter_esp = 8, CODE + 0x100, STACK - 0x100
        top.write(CODE + 0x100, b"\xf4")
        top.write(VMSA, bytes(vmsa))

    def handler(self, vector: int) -> int:
        return FREE + 0x800 + 16 * vector

    def error_code(self) -> int:
        return self.guest.top.read_u32(self.guest.vmsa().rsp)


_SYSENTER, _HLT = b"\x0f\x34", b"\xf4"


def test_sysenter_in_legacy_mode() -> None:
    """It went on with the next instruction."""
    with SmallGuest() as guest:
        _Legacy(guest, _SYSENTER + _HLT)
        assert guest.run() == ExitCode.HLT
        vmsa = guest.vmsa()
        assert (vmsa.rip, vmsa.rsp, vmsa.rflags) == (CODE + 0x101, STACK - 0x100, 2)
        assert (vmsa.cs.selector, vmsa.ss.selector, vmsa.cs.attrib, vmsa.ss.attrib) == (8, 16, 0xC9B, 0xC93)


def test_sysenter_without_a_segment() -> None:
    with SmallGuest() as guest:
        legacy = _Legacy(guest, _SYSENTER + _HLT)
        guest.top.write_u64(VMSA + 0x228, 0)
        assert guest.vmsa().sysenter_cs == 0
        assert guest.run() == ExitCode.HLT
        assert (guest.vmsa().rip, legacy.error_code()) == (legacy.handler(_GP) + 1, 0)


_PAE_TABLES = FREE + 2 * PAGE


@pytest.mark.parametrize("bit", [1, 2, 5, 6, 7, 8, 51, 52, 62, 63, None])
def test_reserved_bits_of_a_legacy_page_directory_pointer(bit: int | None) -> None:
    """Looked at when the entry is used, as nested paging has it (APM volume 2, 15.25.10): the code's own is good."""
    second_gib = b"\xa0" + (SHARED | FREE).to_bytes(4, "little")
    with SmallGuest() as guest:
        legacy = _Legacy(guest, second_gib + _HLT, cr0=0x80000011, cr3=_PAE_TABLES, cr4=0x20)
        guest.top.write_u64(_PAE_TABLES, _PAE_TABLES + PAGE | 1)
        guest.top.write_u64(_PAE_TABLES + 8, _PAE_TABLES + PAGE | 1 | (0 if bit is None else 1 << bit))
        for index in range(2):
            guest.top.write_u64(_PAE_TABLES + PAGE + 8 * index, index << 21 | 0x83)
        assert guest.run() == ExitCode.HLT
        vmsa = guest.vmsa()
        if bit is None:
            assert vmsa.rip == CODE + len(second_gib) + 1
        else:
            assert (vmsa.rip, vmsa.cr2) == (legacy.handler(_PF) + 1, SHARED | FREE)
            assert legacy.error_code() == 9  # present, reserved
