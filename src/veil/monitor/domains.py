# SPDX-License-Identifier: GPL-2.0-or-later
"""The domain table and VCPU replication: every VCPU has one VMSA for each domain that runs on it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Domain", "DomainTable", "VcpuContexts"]


class Domain(enum.Enum):
    """The paper's domains: name, VMPL."""

    MON = ("DomMON", 0)
    SER = ("DomSER", 1)
    ENC = ("DomENC", 2)
    UNT = ("DomUNT", 3)

    @property
    def label(self) -> str:
        """The paper's name."""
        return self.value[0]

    @property
    def vmpl(self) -> int:
        """The VM privilege level that it runs at."""
        return self.value[1]


@dataclass(slots=True)
class VcpuContexts:
    """One VCPU's contexts. `guest_vmsa` is the VMSA that VMPL 3 runs on, of possibly several in `guest_vmsas`."""

    apic_id: int
    monitor_vmsa: int | None = None
    guest_vmsa: int | None = None
    caa: int | None = None
    guest_vmsas: dict[int, int] = field(default_factory=dict)
    """VMSA -> its CAA, for every VMPL 3 context that was created for this VCPU and not deleted."""


class DomainTable:
    """All VCPUs by APIC ID."""

    def __init__(self, vcpus: int) -> None:
        self.vcpus = [VcpuContexts(apic_id) for apic_id in range(vcpus)]

    def by_apic_id(self, apic_id: int) -> VcpuContexts | None:
        """The VCPU, or None."""
        return self.vcpus[apic_id] if 0 <= apic_id < len(self.vcpus) else None

    def holder(self, vmsa: int) -> VcpuContexts | None:
        """The VCPU that has this VMPL 3 VMSA."""
        return next((vcpu for vcpu in self.vcpus if vmsa in vcpu.guest_vmsas), None)

    def state(self) -> list[dict[str, Any]]:
        """For a snapshot."""
        return [
            {
                "apic_id": vcpu.apic_id,
                "monitor_vmsa": vcpu.monitor_vmsa,
                "guest_vmsa": vcpu.guest_vmsa,
                "caa": vcpu.caa,
                "guest_vmsas": sorted(vcpu.guest_vmsas.items()),
            }
            for vcpu in self.vcpus
        ]

    @classmethod
    def load(cls, state: list[dict[str, Any]]) -> DomainTable:
        """From a snapshot."""
        self = cls(0)
        self.vcpus = [
            VcpuContexts(
                item["apic_id"],
                item["monitor_vmsa"],
                item["guest_vmsa"],
                item["caa"],
                {vmsa: caa for vmsa, caa in item["guest_vmsas"]},
            )
            for item in state
        ]
        return self
