# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of the tests on this machine: lines that fail, each with its reason, and tests that are not for it.

A test that is not named here is to pass: to have lines that do, and none that fail. docs/fidelity.md says the same in
a table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kvm_unit_tests.output import End, Outcome

__all__ = ["KNOWN", "NOT_APPLICABLE", "NOT_FOR_EFI", "Known", "KnownEnd", "KnownFailure"]


@dataclass(frozen=True)
class KnownFailure:
    """Lines that match `pattern` as a whole fail for a reason; not `always` if it is one of time."""

    pattern: str
    reason: str
    always: bool = True

    def matches(self, text: str) -> bool:
        """Is it meant?"""
        return re.fullmatch(self.pattern, text) is not None


@dataclass(frozen=True)
class KnownEnd:
    """A test comes to no end of its own, for a reason: it ends so, in words (`Outcome.why`) that match `pattern`."""

    end: End
    pattern: str
    reason: str

    def matches(self, outcome: Outcome) -> bool:
        """Is it meant? Another end is another fault."""
        return outcome.end is self.end and re.fullmatch(self.pattern, outcome.why) is not None


@dataclass(frozen=True)
class Known:
    """Of one test: lines that fail, how it ends if not by itself, and why no line passes or fails, if none does."""

    failures: tuple[KnownFailure, ...] = ()
    no_end: KnownEnd | None = None
    says_nothing: str = ""

    @property
    def reasons(self) -> set[str]:
        """All of them."""
        found = {item.reason for item in self.failures} | {self.says_nothing}
        return (found if self.no_end is None else found | {self.no_end.reason}) - {""}


_KVM = "it judges an interface of KVM, which this host does not have"
_TIMES = "it measures times and judges nothing"
_EMULATOR = "it judges KVM's emulator"
_INTEL = "it is for Intel's processors"
_BOARD = "the board has no such device"
_CPUID_PAGE = (
    "the firmware, which answers CPUID, shows OSXSAVE only if the launch's page has it, as CR4 had not at the launch"
)
_HURRY = "lines on TMCCT fail if this computer is too slow to read a timer before it ends"
_NMI_ENDS = "the IRET of the #VC handler, within the handler of an NMI, lets the next one in"
_NO_STEP = "the firmware's #VC handler goes over the instruction and raises no #DB for it"

_GP = r"13 #GP\(0\) at ip .*"

KNOWN: Mapping[str, Known] = {
    "debug": Known((KnownFailure(r"(Usermode )?Single-step #DB on emulated instructions", _NO_STEP),)),
    "emulator": Known(
        no_end=KnownEnd(
            End.UNHANDLED,
            "#GP - General Protection",
            "it judges KVM's emulator; for an SNP guest the firmware's #VC handler takes its place, which does not "
            "know CMPS",
        )
    ),
    "tsc": Known(
        no_end=KnownEnd(End.UNHANDLED, _GP, "the host takes no write of the TSC, for the machine has no TSC_OFFSET")
    ),
    "apic": Known(
        (
            KnownFailure(r"PV IPIs testing", _KVM),
            KnownFailure(r"pending nmi", _NMI_ENDS),
            KnownFailure(r"TMCCT should .*", _HURRY, always=False),
        )
    ),
    "xsave": Known((KnownFailure(r"Check CPUID\.1\.ECX\.OSXSAVE - expect 1", _CPUID_PAGE),)),
    "eventinj": Known(
        (KnownFailure(r"NMI", _NMI_ENDS),),
        no_end=KnownEnd(
            End.GUEST,
            r".* cannot handle a #VC with error code 0x404;.*",
            "it makes page table entries without the C-bit, so the host shares the page",
        ),
    ),
    "tsc_adjust": Known(says_nothing="the CPUID page names no TSC_ADJUST"),
    "cet": Known(says_nothing="the CPUID page names no CET"),
    **dict.fromkeys(("dummy", "rmap_chain"), Known(says_nothing="its exit status is all that it says")),
}

#: Of tests that the checkout's Makefile has no EFI program for: their code has absolute addresses, or is for 32 bits.
NOT_FOR_EFI = "kvm-unit-tests does not build it for EFI"


NOT_APPLICABLE: Mapping[str, str] = {
    **dict.fromkeys(("asyncpf", "hypercall", "kvmclock_test", "hyperv_clock", "hyperv_connections"), _KVM),
    **dict.fromkeys(("hyperv_stimer", "hyperv_stimer_direct", "hyperv_synic", "vmware_backdoors"), _KVM),
    **dict.fromkeys(("vmexit_cpuid", "vmexit_vmcall", "vmexit_mov_from_cr8", "vmexit_mov_to_cr8"), _TIMES),
    **dict.fromkeys(("vmexit_inl_pmtimer", "vmexit_ipi", "vmexit_ipi_halt", "vmexit_ple_round_robin"), _TIMES),
    **dict.fromkeys(("vmexit_tscdeadline", "vmexit_tscdeadline_immed", "vmexit_cr0_wp", "vmexit_cr4_pge"), _TIMES),
    "tscdeadline_latency": _TIMES,
    **dict.fromkeys(("lam", "pks", "pmu_lbr", "pmu_pebs", "tsx-ctrl"), _INTEL),
    "access_fep": _EMULATOR,
    "sieve": "it reports nothing, and takes an emulated processor minutes",
    "pmu": "the performance counters stand still",
    **dict.fromkeys(("intel-iommu", "hpet_read_test", "init"), _BOARD),
    "s3": "firmware offers no sleep (docs/bring-your-own-image.md)",
}
