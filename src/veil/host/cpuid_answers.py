# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's answers to CPUID: the table of the CPUID page, with what differs from VCPU to VCPU and from time to time.

An SNP guest believes the CPUID page and asks the host only for that: the APIC ID in leaves 1, 0xB and 0x8000001E, and
whether the APIC is on (APM volume 3, appendix E).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.formats.extended_state import EXTENDED_STATE_LEAF, StateComponent, area_size
from veil.formats.registers import CPUID_EDX_APIC

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["CpuidAnswers", "CpuidRegisters"]

#: EAX, EBX, ECX, EDX
CpuidRegisters = tuple[int, int, int, int]

# Leaves whose answer depends on ECX (the list of Linux and of the firmware's CPUID page check).
_SUBLEAF_LEAVES = frozenset({4, 7, 0xB, 0xD, 0xF, 0x10, 0x12, 0x14, 0x8000001D, 0x80000020, 0x80000026})

_LEAF_FEATURES = 1
_LEAF_TOPOLOGY = 0xB
_LEAF_EXTENDED_TOPOLOGY = 0x80000026
_LEAF_EXTENDED_APIC_ID = 0x8000001E

_NOTHING: CpuidRegisters = (0, 0, 0, 0)


class CpuidAnswers:
    """Entries are (EAX in, ECX in, EAX, EBX, ECX, EDX); leaves that are absent read as zeros, as on AMD processors."""

    def __init__(self, entries: Iterable[tuple[int, int, int, int, int, int]] = ()) -> None:
        self._table: dict[tuple[int, int], CpuidRegisters] = {}
        for leaf, subleaf, eax, ebx, ecx, edx in entries:
            key = (leaf, subleaf if leaf in _SUBLEAF_LEAVES else 0)
            # XSTATE entries may repeat for other XCR0 values: the first holds.
            self._table.setdefault(key, (eax, ebx, ecx, edx))
        self._components: dict[int, StateComponent] = {
            subleaf: registers[:3] for (leaf, subleaf), registers in self._table.items() if leaf == EXTENDED_STATE_LEAF
        }

    def answer(
        self, leaf: int, subleaf: int, apic_id: int, *, apic_enabled: bool, xcr0: int = 1, xss: int = 0
    ) -> CpuidRegisters:
        """The registers for a VCPU, whose APIC is on or not (IA32_APIC_BASE.EN); of leaf 0xD for what it has in XCR0
        and XSS."""
        found = self._table.get((leaf, subleaf if leaf in _SUBLEAF_LEAVES else 0), _NOTHING)
        eax, ebx, ecx, edx = found
        if leaf == _LEAF_FEATURES:
            edx &= -1 if apic_enabled else ~CPUID_EDX_APIC
            return eax, ebx & 0x00FFFFFF | (apic_id & 0xFF) << 24, ecx, edx
        if leaf in (_LEAF_TOPOLOGY, _LEAF_EXTENDED_TOPOLOGY) and any(found):
            return eax, ebx, ecx, apic_id
        if leaf == _LEAF_EXTENDED_APIC_ID:
            return apic_id, ebx, ecx, edx
        if leaf == EXTENDED_STATE_LEAF and subleaf < 2 and any(found):
            enabled = xcr0 | (xss if subleaf else 0)
            return eax, area_size(self._components, enabled, compact=subleaf == 1) or 0, ecx, edx
        return found
