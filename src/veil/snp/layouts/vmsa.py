# SPDX-License-Identifier: GPL-2.0-or-later
"""The VMSA of an SEV-ES guest (APM volume 2, 24593, table B-4 "VMSA Layout, State Save Area for SEV-ES")."""

from __future__ import annotations

import ctypes
import enum

from veil.formats.offsets import check_offsets

__all__ = ["SUPPORTED_FEATURES", "V_BUSY", "V_INT_SHADOW", "SevFeatures", "Vmsa", "VmsaSegment", "unsupported_features"]

#: Of VINTR_CTRL, which is otherwise as the VMCB's `v_intr`: the shadow of STI or MOV SS; VMRUN is exit BUSY.
V_INT_SHADOW, V_BUSY = 1 << 10, 1 << 63

_U8, _U16, _U32, _U64 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64


class SevFeatures(enum.IntFlag):
    """Bits of SEV_FEATURES (24593, table B-4)."""

    SNP = 1 << 0
    """SNP is active."""
    VIRTUAL_TOM = 1 << 1
    REFLECT_VC = 1 << 2
    RESTRICTED_INJECTION = 1 << 3
    """The host can inject no event but #HV (24593, section 15.36.16)."""
    ALTERNATE_INJECTION = 1 << 4
    """Events are those of the VMSA's EVENTINJ and VINTR_CTRL, and none are the host's (24593, section 15.36.16)."""
    DEBUG_SWAP = 1 << 5
    """DR0 to DR3 are the VMSA's, and the host does not intercept DR7."""
    PREVENT_HOST_IBS = 1 << 6
    BTB_ISOLATION = 1 << 7
    VMPL_SSS = 1 << 8
    SECURE_TSC = 1 << 9
    VMGEXIT_PARAMETER = 1 << 10
    PMC_VIRTUALIZATION = 1 << 11
    IBS_VIRTUALIZATION = 1 << 12
    VMSA_REGISTER_PROTECTION = 1 << 14
    SMT_PROTECTION = 1 << 15
    SECURE_AVIC = 1 << 16
    IBPB_ON_ENTRY = 1 << 21


#: What contexts may ask for; VMRUN fails with any other bit. The last four and IBPB keep off what is not here.
SUPPORTED_FEATURES = (
    SevFeatures.SNP
    | SevFeatures.RESTRICTED_INJECTION
    | SevFeatures.ALTERNATE_INJECTION
    | SevFeatures.DEBUG_SWAP
    | SevFeatures.PREVENT_HOST_IBS
    | SevFeatures.BTB_ISOLATION
    | SevFeatures.VMPL_SSS
    | SevFeatures.SMT_PROTECTION
    | SevFeatures.IBPB_ON_ENTRY
)


def unsupported_features(features: int) -> str:
    """The names of those that the processor lacks, for people; empty if it has all."""
    missing = features & ~int(SUPPORTED_FEATURES)
    names = [feature.name or "" for feature in SevFeatures if feature & missing]
    unknown = missing & ~sum(int(feature) for feature in SevFeatures)
    return ", ".join([*names, f"{unknown:#x}"] if unknown else names).replace("_", " ").lower()


class VmsaSegment(ctypes.LittleEndianStructure):
    """A segment register: `attrib` packs descriptor bits 47:40 in 7:0 and 55:52 in 11:8."""

    _pack_ = 1
    _fields_ = [("selector", _U16), ("attrib", _U16), ("limit", _U32), ("base", _U64)]

    selector: int
    attrib: int
    limit: int
    base: int


def _u64s(*names: str) -> list[tuple[str, type]]:
    return [(name, _U64) for name in names]


class Vmsa(ctypes.LittleEndianStructure):
    """A VCPU context, 0x670 bytes at the start of its page."""

    _pack_ = 1
    _fields_ = [
        *((name, VmsaSegment) for name in ("es", "cs", "ss", "ds", "fs", "gs", "gdtr", "ldtr", "idtr", "tr")),
        *_u64s("vmpl0_ssp", "vmpl1_ssp", "vmpl2_ssp", "vmpl3_ssp", "u_cet"),
        ("reserved_0c8", _U8 * 2),
        ("vmpl", _U8),
        ("cpl", _U8),
        ("reserved_0cc", _U8 * 4),
        ("efer", _U64),
        ("reserved_0d8", _U8 * 104),
        *_u64s("xss", "cr4", "cr3", "cr0", "dr7", "dr6", "rflags", "rip", "dr0", "dr1", "dr2", "dr3"),
        *_u64s("dr0_addr_mask", "dr1_addr_mask", "dr2_addr_mask", "dr3_addr_mask"),
        ("reserved_1c0", _U8 * 24),
        *_u64s("rsp", "s_cet", "ssp", "isst_addr", "rax", "star", "lstar", "cstar", "sfmask", "kernel_gs_base"),
        *_u64s("sysenter_cs", "sysenter_esp", "sysenter_eip", "cr2"),
        ("reserved_248", _U8 * 32),
        *_u64s("g_pat", "dbgctl", "br_from", "br_to", "last_excp_from", "last_excp_to"),
        ("reserved_298", _U8 * 72),
        ("spec_ctrl", _U64),
        ("pkru", _U32),
        ("tsc_aux", _U32),
        *_u64s("tsc_scale", "tsc_offset", "reserved_300"),
        *_u64s("rcx", "rdx", "rbx", "reserved_320", "rbp", "rsi", "rdi"),
        *_u64s("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
        ("reserved_380", _U8 * 16),
        *_u64s("exit_info_1", "exit_info_2", "exit_int_info", "nrip", "sev_features", "vintr_ctrl"),
        *_u64s("guest_exit_code", "virtual_tom", "tlb_id", "pcpu_id", "event_inj", "xcr0"),
        ("reserved_3f0", _U8 * 16),
        ("x87_dp", _U64),
        ("mxcsr", _U32),
        ("x87_ftw", _U16),
        ("x87_fsw", _U16),
        ("x87_fcw", _U16),
        ("x87_fop", _U16),
        ("x87_ds", _U16),
        ("x87_cs", _U16),
        ("x87_rip", _U64),
        ("fpreg_x87", _U8 * 80),
        ("fpreg_xmm", _U8 * 256),
        ("fpreg_ymm", _U8 * 256),
    ]


check_offsets(VmsaSegment, 16, {"selector": 0, "attrib": 2, "limit": 4, "base": 8})
check_offsets(
    Vmsa,
    0x670,
    {
        "es": 0x000, "cs": 0x010, "ss": 0x020, "ds": 0x030, "fs": 0x040, "gs": 0x050, "gdtr": 0x060, "ldtr": 0x070,
        "idtr": 0x080, "tr": 0x090, "vmpl": 0x0CA, "cpl": 0x0CB, "efer": 0x0D0, "xss": 0x140, "cr4": 0x148,
        "cr3": 0x150, "cr0": 0x158, "dr7": 0x160, "dr6": 0x168, "rflags": 0x170, "rip": 0x178, "dr0": 0x180,
        "rsp": 0x1D8,
        "rax": 0x1F8, "star": 0x200, "cr2": 0x240, "g_pat": 0x268, "dbgctl": 0x270, "spec_ctrl": 0x2E0,
        "pkru": 0x2E8, "tsc_aux": 0x2EC, "tsc_scale": 0x2F0, "tsc_offset": 0x2F8, "rcx": 0x308, "rbp": 0x328,
        "r8": 0x340, "r15": 0x378, "exit_info_1": 0x390, "exit_int_info": 0x3A0, "nrip": 0x3A8,
        "sev_features": 0x3B0, "vintr_ctrl": 0x3B8, "guest_exit_code": 0x3C0, "virtual_tom": 0x3C8,
        "event_inj": 0x3E0, "xcr0": 0x3E8, "x87_dp": 0x400, "mxcsr": 0x408, "x87_ftw": 0x40C, "x87_fcw": 0x410,
        "fpreg_x87": 0x420, "fpreg_xmm": 0x470, "fpreg_ymm": 0x570,
    },
)  # fmt: skip
