# SPDX-License-Identifier: GPL-2.0-or-later
"""What the processor says of itself: the CPUID page of an SNP launch (56860, 8.14.2.6; APM volume 3, appendix E)."""

from __future__ import annotations

import enum
import struct
from collections.abc import Collection
from typing import NamedTuple

from veil.formats.board import C_BIT_POSITION
from veil.formats.domains import VMPLS
from veil.formats.extended_state import EXTENDED_STATE_LEAF, LEGACY_AREA, area_size
from veil.formats.registers import CPUID_EDX_APIC
from veil.snp._engine import Engine
from veil.snp.errors import SnpError
from veil.snp.layouts import SevFeatures

__all__ = [
    "PROCESSOR_SIGNATURE",
    "CpuFeature",
    "CpuidEntryValues",
    "check_features",
    "cpuid_entries",
    "feature_bits",
    "launch_features",
]

#: Family 19h, model 01h, stepping 1 (Milan, the first with SNP). The core is older than that, and would say so: tools
#: then take its reports for impossible ones.
PROCESSOR_SIGNATURE = 0x00A00F11
_BRAND_WORDS = struct.Struct("<4I")
_BRAND = b"Veil software processor (AMD SEV-SNP model)".ljust(48, b"\0")

_MAX_STANDARD = 7
_MAX_EXTENDED = 0x8000001F

# Leaf 1 EDX/ECX.
_ECX_MONITOR = 1 << 3
_ECX_X2APIC = 1 << 21
_ECX_TSC_DEADLINE = 1 << 24
_ECX_XSAVE = 1 << 26
_ECX_OSXSAVE = 1 << 27
_ECX_AVX = 1 << 28
_ECX_FMA_F16C = 1 << 12 | 1 << 29
_ECX_PCID = 1 << 17
_ECX_HYPERVISOR = 1 << 31
_EDX_MCA_MCE = 1 << 14 | 1 << 7
_EDX_MTRR_PAT = 1 << 12 | 1 << 16
_EDX_HTT = 1 << 28

# Leaf 7: what QEMU 5.0's TCG does and an interpreter does not lose by (ERMS' byte-wise REP MOVSB is slow here).
_7_EBX = 1 << 0 | 1 << 3 | 1 << 7 | 1 << 8  # FSGSBASE BMI1 SMEP BMI2
_7_EBX |= 1 << 19 | 1 << 20 | 1 << 23 | 1 << 24  # ADX SMAP CLFLUSHOPT CLWB
_7_ECX_UMIP = 1 << 2  # the core has none: intercepts.c
_7_ECX_PKU = 1 << 3  # OSPKE follows CR4

# 80000001: SVM, performance counters, topology extensions, and AMD's own vector sets are not there.
_81_ECX = 1 << 0 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8  # LAHF CR8 ABM SSE4A 3DNOWPREFETCH


# 0xD: what there is of it, and how it is saved
_X87_SSE, _PKRU = 3, 1 << 9
_XSAVEOPT_XSAVEC_XGETBV1 = 7
_KEYS_SUBLEAF = 9
_KEYS_STATE = (8, 0xA80, 0)
_BASE_XCR0 = 1


class CpuFeature(enum.Enum):
    """What the processor has if asked for: a stock kernel that finds it here is the slower for it."""

    XSAVE = "xsave"
    """XSAVE, XSAVEOPT, XSAVEC, XGETBV and XSETBV."""
    PKU = "pku"
    """Protection keys; their state is saved by XSAVE."""
    DEBUG_SWAP = "debug-swap"
    """The VMSAs of the launch have DebugSwap: breakpoints of hardware for the guest. (The processor always can.)"""


_BITS = {CpuFeature.XSAVE: 1 << 0, CpuFeature.PKU: 1 << 1}  # VEIL_CPU_


def check_features(features: Collection[CpuFeature]) -> None:
    """Raises SnpError for what no processor has."""
    if CpuFeature.PKU in features and CpuFeature.XSAVE not in features:
        raise SnpError("a processor with protection keys (pku) has xsave as well")


def feature_bits(features: Collection[CpuFeature]) -> int:
    """As the engine has them."""
    return sum(_BITS.get(feature, 0) for feature in frozenset(features))


def launch_features(features: Collection[CpuFeature]) -> int:
    """The SEV_FEATURES of a launch's VMSAs."""
    return int(SevFeatures.SNP | (SevFeatures.DEBUG_SWAP if CpuFeature.DEBUG_SWAP in features else 0))


class CpuidEntryValues(NamedTuple):
    """One entry of the CPUID page."""

    leaf: int
    subleaf: int
    eax: int
    ebx: int
    ecx: int
    edx: int
    xcr0: int = 0
    """For which value of XCR0 this holds; of leaf 0xD alone."""


def cpuid_entries(engine: Engine, vcpus: int = 1, features: Collection[CpuFeature] = ()) -> list[CpuidEntryValues]:
    """The table, from what the core can do."""

    def entry(leaf: int, eax: int, ebx: int, ecx: int, edx: int) -> CpuidEntryValues:
        return CpuidEntryValues(leaf, 0, eax, ebx, ecx, edx)

    _, vendor_b, vendor_c, vendor_d = engine.cpuid(0)
    _, brand, features_c, features_d = engine.cpuid(1)
    features_c &= ~(_ECX_MONITOR | _ECX_XSAVE | _ECX_OSXSAVE | _ECX_AVX | _ECX_FMA_F16C | _ECX_PCID)
    features_c |= _ECX_HYPERVISOR | _ECX_X2APIC | _ECX_TSC_DEADLINE
    features_d &= ~(_EDX_MCA_MCE | _EDX_HTT)
    features_d |= CPUID_EDX_APIC | _EDX_MTRR_PAT
    brand = brand & 0x0000FFFF | vcpus << 16
    if CpuFeature.XSAVE in features:
        features_c |= _ECX_XSAVE  # OSXSAVE is the guest's to add: it follows CR4
    if vcpus > 1:
        features_d |= _EDX_HTT
    _, _, extended_c, extended_d = engine.cpuid(0x80000001)
    extended_d &= ~_EDX_MCA_MCE
    extended_d |= CPUID_EDX_APIC | _EDX_MTRR_PAT
    table = [
        entry(0, _MAX_STANDARD if CpuFeature.XSAVE not in features else 0xD, vendor_b, vendor_c, vendor_d),
        entry(1, PROCESSOR_SIGNATURE, brand, features_c, features_d),
        entry(7, 0, _7_EBX & engine.cpuid(7)[1], _7_ECX_UMIP | (_7_ECX_PKU if CpuFeature.PKU in features else 0), 0),
        entry(0x80000000, _MAX_EXTENDED, vendor_b, vendor_c, vendor_d),
        entry(0x80000001, PROCESSOR_SIGNATURE, 0, extended_c & _81_ECX, extended_d),
    ]
    table += [entry(0x80000002 + number, *_BRAND_WORDS.unpack_from(_BRAND, 16 * number)) for number in range(3)]
    table += [
        entry(0x80000008, 48 | 48 << 8, 0, vcpus - 1, 0),
        # SEV, SEV-ES, SEV-SNP, VMPL, DebugSwap; C-bit position, no reduction of the address width, number of VMPLs.
        entry(0x8000001F, 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 14, C_BIT_POSITION | VMPLS << 12, 509, 1),
        *(_extended_state(CpuFeature.PKU in features) if CpuFeature.XSAVE in features else ()),
    ]
    return table


def _extended_state(keys: bool) -> list[CpuidEntryValues]:
    """0xD. EBX of the first two depends on XCR0; guests take the least one, and add up the components' sizes."""
    supported = _X87_SSE | (_PKRU if keys else 0)
    largest = area_size({_KEYS_SUBLEAF: _KEYS_STATE}, supported, compact=False) or 0
    table = [
        CpuidEntryValues(EXTENDED_STATE_LEAF, 0, supported, LEGACY_AREA, largest, 0, _BASE_XCR0),
        CpuidEntryValues(EXTENDED_STATE_LEAF, 1, _XSAVEOPT_XSAVEC_XGETBV1, LEGACY_AREA, 0, 0, _BASE_XCR0),
    ]
    if keys:
        table.append(CpuidEntryValues(EXTENDED_STATE_LEAF, _KEYS_SUBLEAF, *_KEYS_STATE, 0))
    return table
