# SPDX-License-Identifier: GPL-2.0-or-later
"""The reasons that guests give when they terminate themselves, in words.

56421 ("Termination Request") defines reason set 0; sets from 1 on belong to guests.
"""

from __future__ import annotations

from collections.abc import Mapping

from veil.formats.termination import GeneralReason, MonitorReason, ReasonSet

__all__ = ["describe_termination"]

_GENERAL: Mapping[int, str] = {
    GeneralReason.GENERAL: (
        "a general request; Linux says so when its CPUID table or its #VC handling fails early, COCONUT-SVSM always"
    ),
    GeneralReason.PROTOCOL_RANGE: "the guest does not speak the GHCB protocol versions that the host offers",
    GeneralReason.SNP_FEATURES: (
        "SEV-SNP features that the guest needs are missing: the confidential-computing blob, SEV_STATUS or feature bits"
    ),
}
_LINUX = {
    0: "the host did not confirm the registration of the GHCB",
    1: "a page state change failed",
    2: "PVALIDATE failed",
    3: "the kernel needs VMPL 0 but runs below it; it knows no SVSM, take Linux 6.11 or newer, or --no-monitor",
    4: "the CPUID page is unusable",
    5: "a CPUID value from the hypervisor is unusable",
    6: "the secrets page is unusable",
    7: "the kernel does not run at VMPL 0 and the secrets page announces no SVSM",
    8: "the secrets page announces an SVSM but claims that the kernel runs at VMPL 0",
    9: "the SVSM's calling area is not page aligned",
    10: "setting up Secure TSC failed",
    11: "the SVSM refused to move its calling area",
    12: "setting up Secure AVIC failed",
    13: "Secure AVIC needs x2APIC",
}
_SVSM = {
    0: "a general failure of the SVSM",
    1: "the SVSM is out of memory",
    2: "the SVSM met a #VC that it cannot handle",
    3: "a page state change failed",
    4: "setting up the SVSM's page tables failed",
    5: "the SVSM has no GHCB",
    6: "the host's answer in the GHCB is not valid",
    7: "the firmware configuration is not usable",
    8: "the BIOS image is not usable",
    9: "the SVSM does not run at VMPL 0",
    10: "SEV features of VMPL 0 are wrong",
    11: "a VMSA has the wrong VMPL",
    12: "SEV features of VMPL 1 are wrong",
}
_MONITOR: Mapping[int, str] = {
    MonitorReason.GENERAL: "VeilMon met a condition that it cannot serve safely",
    MonitorReason.BAD_PARAMETERS: "the parameters in the measured image are unusable",
    MonitorReason.MEMORY_ALREADY_VALIDATED: (
        "memory was validated before VeilMon did it: the host remapped pages, or the image is not for this machine"
    ),
    MonitorReason.MEMORY_NOT_VALIDATED: "validating memory failed",
    MonitorReason.BAD_KERNEL_VMSA: "the kernel's VMSA is unusable",
    MonitorReason.HOST_REFUSED: "the host refused a request of VeilMon, or answered it wrongly",
    MonitorReason.HOST_LACKS_FEATURES: "the host lacks a feature that VeilMon needs: AP creation or multiple VMPLs",
    MonitorReason.CPUID_CHANGED: "the CPUID page is not the one that the image was measured with: the host changed it",
    MonitorReason.BAD_SERVICES: "the protected services did not start",
}
_SETS: dict[int, Mapping[int, str]] = {
    ReasonSet.GENERAL: _GENERAL,
    ReasonSet.LINUX: _LINUX,
    ReasonSet.MONITOR: _MONITOR,
    ReasonSet.SVSM: _SVSM,
}


def describe_termination(reason_set: int, code: int) -> str:
    """A reason set and code as a sentence."""
    reasons = _SETS.get(reason_set)
    if reasons is None:
        return "a reason set that is private to the guest"
    return reasons.get(code, "a code that its reason set does not define")
