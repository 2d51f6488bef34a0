# SPDX-License-Identifier: GPL-2.0-or-later
"""Contexts of VMPL 2: what a service may have VeilMon seal. Nothing of DomENC is supervisor code."""

from __future__ import annotations

from veil.formats.domains import ENCLAVE_VMPL
from veil.formats.registers import Cr0, Cr4, Efer, Rflags
from veil.snp.layouts import SevFeatures, Vmsa

__all__ = ["enclave_features", "find_fault"]

_EFER_NEEDED = int(Efer.SVME | Efer.LME | Efer.LMA | Efer.NXE)
_CR0_NEEDED = int(Cr0.PG | Cr0.WP | Cr0.PE)
_CR4_NEEDED = int(Cr4.PAE)
#: LA57 and CET, which nothing here knows; SMAP, SMEP and the like restrict, and may be
_CR4_REFUSED = int(Cr4.LA57 | Cr4.CET)
#: traps and input and output are not an enclave's
_RFLAGS_REFUSED = int(Rflags.TF | Rflags.IOPL | Rflags.NT | Rflags.RF | Rflags.VM | Rflags.VIF | Rflags.VIP)
_CS_LONG, _CS_DEFAULT = 1 << 9, 1 << 10
_DPL, _DPL_3 = 3 << 5, 3 << 5


def enclave_features(sev_features: int) -> int:
    """The SEV_FEATURES of contexts of VMPL 2: the boot VCPU's, and no events from the host; debug registers, which no
    program can use, need not be swapped.

    An event that the host made up would reach the enclave's handler in ring 3 as if the program had caused it: a #VC, a
    page fault, an `int 0x80` that was never executed.
    """
    return sev_features & ~int(SevFeatures.DEBUG_SWAP) | SevFeatures.RESTRICTED_INJECTION


def find_fault(vmsa: Vmsa, sev_features: int) -> str | None:
    """Why this is not a context of VMPL 2 that may run; None if it is one. `sev_features`: the boot VCPU's."""
    checks = {
        # Of another VMPL the service would have made itself a context of VMPL 0, or one that the kernel's rights run.
        "VMPL": vmsa.vmpl == ENCLAVE_VMPL,
        "CPL": vmsa.cpl == 3,
        "SEV_FEATURES": vmsa.sev_features == enclave_features(sev_features),
        "EFER": vmsa.efer & _EFER_NEEDED == _EFER_NEEDED,
        "CR0": vmsa.cr0 & _CR0_NEEDED == _CR0_NEEDED,
        "CR4": vmsa.cr4 & _CR4_NEEDED == _CR4_NEEDED and not vmsa.cr4 & _CR4_REFUSED,
        "RFLAGS": not vmsa.rflags & _RFLAGS_REFUSED and bool(vmsa.rflags & Rflags.ONE),
        # 64-bit code of DPL 3, and a stack to it: CPL and descriptors agree.
        "CS": vmsa.cs.attrib & (_CS_LONG | _CS_DEFAULT) == _CS_LONG and vmsa.cs.attrib & _DPL == _DPL_3,
        "SS": vmsa.ss.attrib & _DPL == _DPL_3,
        # It begins with no event that nobody raised, and left by no exit that somebody could take for its own.
        "EVENTINJ": not vmsa.event_inj and not vmsa.exit_int_info,
        "GUEST_EXIT_CODE": not vmsa.guest_exit_code,
    }
    wrong = [name for name, good in checks.items() if not good]
    return f"the page holds no context of VMPL 2: {', '.join(wrong)}" if wrong else None
