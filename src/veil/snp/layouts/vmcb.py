# SPDX-License-Identifier: GPL-2.0-or-later
"""The control area of a VMCB (APM volume 2, 24593, table B-1). The host owns it; the core reads and writes it."""

from __future__ import annotations

import ctypes

from veil.formats.offsets import check_offsets

__all__ = [
    "EVENT_ERROR_CODE",
    "EVENT_EXCEPTION",
    "EVENT_NMI",
    "EVENT_VALID",
    "GUEST_INTERRUPT_MASK",
    "V_IGN_TPR",
    "V_INTR_PRIO_SHIFT",
    "V_INTR_VECTOR_SHIFT",
    "V_IRQ",
    "V_NMI",
    "V_NMI_ENABLE",
    "V_NMI_MASK",
    "V_TPR",
    "Vmcb",
]

#: EVENTINJ and EXITINTINFO, bit 31: there is an event (24593, 15.20).
EVENT_VALID = 1 << 31
#: Bit 11: with an error code, in bits 63:32. Bits 10:8, what kind of event.
EVENT_ERROR_CODE, EVENT_NMI, EVENT_EXCEPTION = 1 << 11, 2 << 8, 3 << 8

#: Of `interrupt_shadow`: RFLAGS.IF of a guest whose registers the host cannot read.
GUEST_INTERRUPT_MASK = 1 << 1

#: Of `v_intr` (24593, 15.21.4): the guest's CR8; an interrupt is offered; where its priority begins, which must be
#: above CR8; whatever CR8 is; and where its vector begins.
V_TPR, V_IRQ, V_INTR_PRIO_SHIFT, V_IGN_TPR, V_INTR_VECTOR_SHIFT = 0xF, 1 << 8, 16, 1 << 20, 32
#: An NMI waits; the guest has one in hand, until its IRET; both mean nothing without the third (24593, 15.21.10).
V_NMI, V_NMI_MASK, V_NMI_ENABLE = 1 << 11, 1 << 12, 1 << 26

_U8, _U16, _U32, _U64 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64


class Vmcb(ctypes.LittleEndianStructure):
    """0x400 bytes. `interrupt_shadow`: bit 0 the shadow of STI or MOV SS, bit 1 GUEST_INTERRUPT_MASK."""

    _pack_ = 1
    _fields_ = [
        ("intercepts", _U32 * 6),
        ("reserved_018", _U8 * 36),
        ("pause_filter_threshold", _U16),
        ("pause_filter_count", _U16),
        ("iopm_base_pa", _U64),
        ("msrpm_base_pa", _U64),
        ("tsc_offset", _U64),
        ("asid", _U32),
        ("tlb_control", _U8),
        ("reserved_05d", _U8 * 3),
        ("v_intr", _U64),
        ("interrupt_shadow", _U64),
        ("exit_code", _U64),
        ("exit_info_1", _U64),
        ("exit_info_2", _U64),
        ("exit_int_info", _U64),
        ("np_enable", _U64),
        ("avic_vapic_bar", _U64),
        ("ghcb_gpa", _U64),
        ("event_inj", _U64),
        ("nested_cr3", _U64),
        ("virt_ext", _U64),
        ("clean", _U32),
        ("reserved_0c4", _U32),
        ("nrip", _U64),
        ("insn_len", _U8),
        ("insn_bytes", _U8 * 15),
        ("avic_backing_page", _U64),
        ("reserved_0e8", _U64),
        ("avic_logical_id", _U64),
        ("avic_physical_id", _U64),
        ("reserved_100", _U64),
        ("vmsa_pa", _U64),
        ("reserved_110", _U8 * 0x2F0),
    ]

    asid: int
    v_intr: int
    interrupt_shadow: int
    exit_code: int
    exit_info_1: int
    exit_info_2: int
    exit_int_info: int
    ghcb_gpa: int
    event_inj: int
    nrip: int
    vmsa_pa: int


check_offsets(
    Vmcb,
    0x400,
    {
        "iopm_base_pa": 0x040, "asid": 0x058, "v_intr": 0x060, "interrupt_shadow": 0x068, "exit_code": 0x070,
        "exit_info_1": 0x078, "exit_info_2": 0x080, "exit_int_info": 0x088, "np_enable": 0x090, "ghcb_gpa": 0x0A0,
        "event_inj": 0x0A8, "clean": 0x0C0, "nrip": 0x0C8, "vmsa_pa": 0x108,
    },
)  # fmt: skip
