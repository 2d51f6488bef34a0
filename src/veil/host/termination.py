# SPDX-License-Identifier: GPL-2.0-or-later
"""The reasons that guests give when they terminate themselves, in words.

56421 ("Termination Request") defines reason set 0; sets from 1 on belong to guests.
"""

from __future__ import annotations

__all__ = ["LINUX_SET", "MONITOR_SET", "SVSM_SET", "termination_words"]

GENERAL_SET = 0
#: Linux (arch/x86/include/asm/sev-common.h).
LINUX_SET = 1
#: VeilMon (veil.monitor.errors.Reason).
MONITOR_SET = 5
#: AMD's linux-svsm. COCONUT-SVSM always says set 0, code 0.
SVSM_SET = 15

_GENERAL = {
    0: "a general request; Linux says so when its CPUID table or its #VC handling fails early, COCONUT-SVSM always",
    1: "the guest does not speak the GHCB protocol versions that the host offers",
    2: "SEV-SNP features that the guest needs are missing: the confidential-computing blob, SEV_STATUS or feature bits",
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
_MONITOR = {
    0: "VeilMon met a condition that it cannot serve safely",
    1: "the parameters in the measured image are unusable",
    2: "memory was validated before VeilMon did it: the host remapped pages, or the image is not for this machine",
    3: "validating memory failed",
    4: "the kernel's VMSA is unusable",
    5: "the host refused a request of VeilMon, or answered it wrongly",
    6: "the host lacks a feature that VeilMon needs: AP creation or multiple VMPLs",
    7: "the CPUID page is not the one that the image was measured with: the host changed it",
    8: "the protected services did not start",
}
_SETS = {GENERAL_SET: _GENERAL, LINUX_SET: _LINUX, MONITOR_SET: _MONITOR, SVSM_SET: _SVSM}


def termination_words(reason_set: int, code: int) -> str:
    """A reason set and code as a sentence."""
    reasons = _SETS.get(reason_set)
    if reasons is None:
        return "a reason set that is private to the guest"
    return reasons.get(code, "a code that its reason set does not define")
