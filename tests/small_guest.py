# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest of a few instructions on the bare machine, and a host of a few lines: what does the hardware do?

Memory is identity mapped twice: private at its own address, and shared (C-bit clear) at `SHARED` above it. Every
exception stores its vector, error code and RIP in `Trap` and halts.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import NamedTuple, Self

from tests.machine_code import assemble
from veil.snp import CpuFeature, ExitCode, Machine, PageSize, Permission, RmpResult
from veil.snp.layouts import Vmcb, Vmsa, VmsaSegment

__all__ = ["CODE", "FREE", "SHARED", "TABLES", "SmallGuest", "Trap"]

PAGE = 4096
MEMORY = 4 << 20
SHARED = 1 << 30

_PML4, _PDPT, _PD, _PT, _PD_SHARED = 0x1000, 0x2000, 0x3000, 0x4000, 0x6000
#: the page tables
TABLES = range(_PML4, 0x7000, PAGE)
IDT, _GDT, _HANDLERS, TRAPS, _TSS = 0x8000, 0x9000, 0xA000, 0xB000, 0xC000
VMSA = 0xD000
CODE, STACK = 0x10000, 0x20000
#: 4 KiB pages that nothing uses
FREE = 0x100000

_C_BIT = 1 << 51
_PRESENT_RW_USER, _USER = 7, 4
_LARGE = 0x80
_WITH_ERROR_CODE = (8, 10, 11, 12, 13, 14, 17, 29)

_STUBS = (
    "".join(
        f".balign 16\n{'' if vector in _WITH_ERROR_CODE else 'push 0'}\npush {vector}\njmp common\n"
        for vector in range(64)
    )
    + f"""
common:
    push rax
    push rbx
    mov rbx, {TRAPS}
    mov rax, [rsp + 16]
    mov [rbx], rax
    mov rax, [rsp + 24]
    mov [rbx + 8], rax
    mov rax, [rsp + 32]
    mov [rbx + 16], rax
    inc qword ptr [rbx + 24]
    pop rbx
    pop rax
    add rsp, 16
    hlt
    iretq
"""
)


class Trap(NamedTuple):
    """The last exception or interrupt that the guest took, and how many there were."""

    vector: int
    error_code: int
    rip: int
    times: int


class SmallGuest:
    """4 MiB, all the guest's and validated, all open to the guest's VMPL."""

    def __init__(
        self, code: str = "hlt", *, vmpl: int = 3, cpl: int = 0, cpu_features: Collection[CpuFeature] = ()
    ) -> None:
        self.machine = Machine(MEMORY, cpu_features=cpu_features)
        self.host = self.machine.host_view()
        self.top = self.machine.view(vmpl=0)
        assert self.host.rmpupdate(0, assigned=True, count=MEMORY // PAGE) == RmpResult.SUCCESS
        for gpa in range(0, MEMORY, PAGE):
            assert self.top.pvalidate(gpa).code == RmpResult.SUCCESS
            if vmpl:
                self.permit(gpa, Permission.ALL, vmpl)
        self.vmpl = vmpl
        self._tables()
        self.put(code)
        self.vmcb = self.make_context(VMSA, vmpl=vmpl, cpl=cpl)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.machine.close()

    def _tables(self) -> None:
        write = self.top.write_u64
        link = _PRESENT_RW_USER | _C_BIT
        write(_PML4, _PDPT | link)
        write(_PDPT, _PD | link)
        write(_PDPT + 8, _PD_SHARED | link)
        for index in range(MEMORY >> 21):
            write(_PD + 8 * index, (_PT + PAGE * index) | link)
            write(_PD_SHARED + 8 * index, index << 21 | _PRESENT_RW_USER | _LARGE)
        for gpa in range(0, MEMORY, PAGE):
            self.map(gpa, gpa)
        # Null, code and data of ring 0, data and code of ring 3, TSS.
        gdt = struct.pack("<5Q", 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF)
        self.top.write(_GDT, gdt)
        self.top.write_u64(_TSS + 4, STACK)
        self.top.write(_HANDLERS, assemble(_STUBS, _HANDLERS))
        for vector in range(64):
            handler = _HANDLERS + 16 * vector
            gate = struct.pack("<HHBBHII", handler & 0xFFFF, 0x08, 0, 0xEE, handler >> 16, 0, 0)
            self.top.write(IDT + 16 * vector, gate)

    def map(self, address: int, gpa: int, *, user: bool = True, key: int = 0) -> None:
        """Another virtual address, below the end of memory, for a page; `key` protects it."""
        entry = gpa | _PRESENT_RW_USER | _C_BIT | key << 59
        self.top.write_u64(_PT + 8 * (address // PAGE), entry if user else entry & ~_USER)

    def make_kernels_own(self, *but: int) -> None:
        """All of the private mapping is for supervisors only, except for these pages."""
        for gpa in range(0, MEMORY, PAGE):
            self.map(gpa, gpa, user=gpa in but)

    def put(self, code: str, at: int = CODE) -> None:
        """Assemble code to an address."""
        self.top.write(at, assemble(code, at))

    def make_context(self, gpa: int, *, vmpl: int, cpl: int = 0, rip: int = CODE) -> Vmcb:
        """A VMSA, and a VMCB that names it."""
        vmsa = Vmsa(vmpl=vmpl, cpl=cpl, sev_features=1, rip=rip, rsp=STACK, cr3=_PML4, cr0=0x80050033, cr4=0x620)
        vmsa.efer, vmsa.rflags = 0x1D01, 0x202
        vmsa.cs = VmsaSegment(0x23 if cpl else 0x08, 0xAFB if cpl else 0xA9B, 0xFFFFFFFF, 0)
        for name in ("ds", "es", "fs", "gs", "ss"):
            setattr(vmsa, name, VmsaSegment(0x1B if cpl else 0x10, 0xCF3 if cpl else 0xC93, 0xFFFFFFFF, 0))
        vmsa.tr = VmsaSegment(0x28, 0x8B, 0x67, _TSS)
        vmsa.ldtr = VmsaSegment(0, 0x82, 0, 0)
        vmsa.gdtr, vmsa.idtr = VmsaSegment(0, 0, 0x27, _GDT), VmsaSegment(0, 0, 0x3FF, IDT)
        vmsa.dr6, vmsa.dr7, vmsa.g_pat, vmsa.xcr0 = 0xFFFF0FF0, 0x400, 0x0007040600070406, 1
        vmsa.mxcsr, vmsa.x87_ftw, vmsa.x87_fcw = 0x1F80, 0xFFFF, 0x37F
        self.top.write(gpa, bytes(vmsa))
        assert self.top.rmpadjust(gpa, vmpl=max(vmpl, 1), permissions=0, vmsa=True) == RmpResult.SUCCESS
        vmcb = self.machine.new_vmcb()
        vmcb.vmsa_pa = gpa
        return vmcb

    def permit(self, gpa: int, permissions: int, vmpl: int | None = None) -> None:
        """RMPADJUST by VMPL 0."""
        target = self.vmpl if vmpl is None else vmpl
        assert self.top.rmpadjust(gpa, vmpl=target, permissions=permissions) == RmpResult.SUCCESS

    def invalidate(self, gpa: int) -> None:
        """PVALIDATE by VMPL 0: rescind."""
        assert self.top.pvalidate(gpa, validate=False).code == RmpResult.SUCCESS

    def share(self, gpa: int) -> None:
        """The host takes a page."""
        assert self.host.rmpupdate(gpa, assigned=False, size=PageSize.SIZE_4K) == RmpResult.SUCCESS

    def run(self, vmcb: Vmcb | None = None, *, deadline_ns: int = 0) -> ExitCode:
        """VMRUN to the next exit."""
        vmcb = vmcb or self.vmcb
        self.machine.vmrun(vmcb, deadline_ns)
        return ExitCode(vmcb.exit_code)

    def vmsa(self, gpa: int = VMSA) -> Vmsa:
        """The registers, as VMPL 0 reads them."""
        return Vmsa.from_buffer_copy(self.top.read(gpa, PAGE))

    def trap(self) -> Trap:
        """What the handlers noted."""
        return Trap(*struct.unpack("<4Q", self.top.read(TRAPS, 32)))
