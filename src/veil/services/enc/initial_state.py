# SPDX-License-Identifier: GPL-2.0-or-later
"""What the processor finds in an enclave before its first instruction: descriptor tables, task state, registers.

System calls and all exceptions are delivered at CPL 3, to the runtime (24593, 8.9, "long-mode interrupt control
transfers" to a gate of equal privilege): nothing of an enclave is ever supervisor code, and the RMP would not run it.
"""

from __future__ import annotations

import struct

from veil.formats.board import C_BIT
from veil.formats.domains import ENCLAVE_VMPL
from veil.formats.enclaves import (
    CODE_SELECTOR,
    DATA_SELECTOR,
    IDT,
    SYSTEM,
    SYSTEM_STRIDE,
    THREAD_STRIDE,
    THREADS,
    VECTOR_STRIDE,
    ThreadPart,
    vector_stack,
)
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.registers import (
    INIT_FCW,
    RESET_DR6,
    RESET_DR7,
    RESET_MXCSR,
    RESET_PAT,
    RESET_XCR0,
    X87_EMPTY,
    Cr0,
    Cr4,
    Efer,
    Rflags,
)
from veil.snp.layouts import SevFeatures, Vmsa, VmsaSegment

__all__ = ["descriptor_page", "first_context", "interrupt_table"]

# Attributes as in descriptors' bits 47:40 and 55:52. "Accessed" is set: the processor would write it into the table.
_CODE, _DATA, _TASK, _LOCAL = 0xAFB, 0xCF3, 0x08B, 0x082
_FLAT = 0xFFFFFFFF
_DESCRIPTORS = 8
_TASK_SELECTOR = 0x30
#: where the task state is in its page, and its size without I/O permissions (24593, figure 12-8)
_TSS, _TSS_SIZE = 0x100, 0x68
_STACK_TABLE = struct.Struct("<3Q")
_STACK_TABLE_OFFSET, _IO_MAP_OFFSET = 0x24, 0x66
_GATE = struct.Struct("<HHBBHII")
#: present, DPL 3, 64-bit interrupt gate: whatever raises the vector, INT n of the program too, comes to the runtime
_INTERRUPT_GATE = 0xEE

_EFER = Efer.SVME | Efer.LME | Efer.LMA | Efer.NXE  # SCE is not there: SYSCALL raises #UD
_CR0 = Cr0.PG | Cr0.WP | Cr0.NE | Cr0.ET | Cr0.MP | Cr0.PE
_CR4 = Cr4.SMEP | Cr4.FSGSBASE | Cr4.OSXMMEXCPT | Cr4.OSFXSR | Cr4.PAE
_RFLAGS = Rflags.ONE | Rflags.IF  # IF: the host takes the VCPU back with interrupts


def descriptor_page(slot: int) -> bytes:
    """A slot's page at SYSTEM: GDT and TSS."""
    page = bytearray(PAGE_SIZE)
    for selector, attributes in ((CODE_SELECTOR, _CODE), (DATA_SELECTOR, _DATA)):
        struct.pack_into("<Q", page, selector & ~7, _descriptor(attributes))
    thread = THREADS + slot * THREAD_STRIDE
    stacks = (ThreadPart.IST1_TOP, ThreadPart.IST2_TOP, ThreadPart.IST3_TOP)
    _STACK_TABLE.pack_into(page, _TSS + _STACK_TABLE_OFFSET, *(thread + top for top in stacks))
    struct.pack_into("<H", page, _TSS + _IO_MAP_OFFSET, _TSS_SIZE)
    return bytes(page)


def _descriptor(attributes: int) -> int:
    return (attributes & 0xFF) << 40 | (attributes >> 8) << 52 | 0xFFFF | 0xF << 48


def interrupt_table(vectors: int) -> bytes:
    """The page at IDT: the gate of vector v leads to `vectors` + 16 * v."""
    gates = []
    for vector in range(PAGE_SIZE // _GATE.size):
        handler = vectors + vector * VECTOR_STRIDE
        gates.append(
            _GATE.pack(
                handler & 0xFFFF, CODE_SELECTOR, vector_stack(vector), _INTERRUPT_GATE, handler >> 16 & 0xFFFF,
                handler >> 32, 0,
            )
        )  # fmt: skip
    return b"".join(gates)


def first_context(slot: int, entry: int, root: int) -> bytes:
    """The page of a slot's VMSA. `root`: the highest page table."""
    system = SYSTEM + slot * SYSTEM_STRIDE
    data = VmsaSegment(DATA_SELECTOR, _DATA, _FLAT, 0)
    thread = VmsaSegment(0, _DATA, _FLAT, 0)
    vmsa = Vmsa(
        es=data, ds=data, ss=data, fs=thread, gs=thread,
        cs=VmsaSegment(CODE_SELECTOR, _CODE, _FLAT, 0),
        gdtr=VmsaSegment(0, 0, _DESCRIPTORS * 8 - 1, system),
        idtr=VmsaSegment(0, 0, PAGE_SIZE - 1, IDT),
        ldtr=VmsaSegment(0, _LOCAL, 0, 0),
        tr=VmsaSegment(_TASK_SELECTOR, _TASK, _TSS_SIZE - 1, system + _TSS),
        vmpl=ENCLAVE_VMPL, cpl=3, efer=_EFER, sev_features=SevFeatures.SNP | SevFeatures.RESTRICTED_INJECTION,
        cr0=_CR0, cr3=root | C_BIT, cr4=_CR4, xcr0=RESET_XCR0, g_pat=RESET_PAT, dr6=RESET_DR6, dr7=RESET_DR7,
        rflags=_RFLAGS, rip=entry, rdi=slot, rsp=THREADS + slot * THREAD_STRIDE + ThreadPart.STACK_TOP,
        mxcsr=RESET_MXCSR, x87_fcw=INIT_FCW, x87_ftw=X87_EMPTY,
    )  # fmt: skip
    return bytes(vmsa).ljust(PAGE_SIZE, b"\0")
