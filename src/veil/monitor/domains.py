# SPDX-License-Identifier: GPL-2.0-or-later
"""The domain table and VCPU replication: every VCPU has one VMSA for each domain that runs on it."""

from __future__ import annotations

import enum
from collections.abc import Iterator
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
    """One VCPU's contexts. The kernel may have several VMSAs for it at a time: a CPU that comes back gets a new one
    before the old one is deleted. `guest_vmsa`, with its calling area `caa`, is the newest, which is the one that runs.
    """

    apic_id: int
    monitor_vmsa: int | None = None
    guest_vmsa: int | None = None
    caa: int | None = None
    guest_vmsas: dict[int, int] = field(default_factory=dict)
    """VMSA -> its CAA, for every VMPL 3 context that was created for this VCPU and not deleted."""
    unfinished: int | None = None
    """The VMSA whose call waits for the host; its registers will be written when it is done."""
    service_vmsa: int | None = None

    def vmsas(self) -> dict[Domain, int]:
        """The VMSA of each domain that can run on this VCPU now."""
        found = {Domain.MON: self.monitor_vmsa, Domain.SER: self.service_vmsa, Domain.UNT: self.guest_vmsa}
        return {domain: vmsa for domain, vmsa in found.items() if vmsa is not None}

    def set_guest(self, vmsa: int, caa: int) -> None:
        """A context of VMPL 3 that runs from now on."""
        self.guest_vmsas[vmsa] = caa
        self.guest_vmsa, self.caa = vmsa, caa

    def remap(self, caa: int) -> int | None:
        """Another calling area for the context that runs; returns the old one."""
        assert self.guest_vmsa is not None
        old, self.caa = self.caa, caa
        self.guest_vmsas[self.guest_vmsa] = caa
        return old

    def drop_guest(self, vmsa: int) -> int:
        """Forget a context of VMPL 3; returns its calling area."""
        if self.guest_vmsa == vmsa:
            self.guest_vmsa = self.caa = None
        return self.guest_vmsas.pop(vmsa)


class DomainTable:
    """All VCPUs by APIC ID, which are numbered from 0."""

    def __init__(self, vcpus: int) -> None:
        self.vcpus = [VcpuContexts(apic_id) for apic_id in range(vcpus)]

    def by_apic_id(self, apic_id: int) -> VcpuContexts | None:
        """The VCPU, or None."""
        return self.vcpus[apic_id] if 0 <= apic_id < len(self.vcpus) else None

    def by_monitor_vmsa(self, vmsa: int) -> VcpuContexts | None:
        """The VCPU whose monitor runs on this VMSA."""
        return next((vcpu for vcpu in self.vcpus if vcpu.monitor_vmsa == vmsa), None)

    def holder(self, vmsa: int) -> VcpuContexts | None:
        """The VCPU that has this VMPL 3 VMSA."""
        return next((vcpu for vcpu in self.vcpus if vmsa in vcpu.guest_vmsas), None)

    def guest_contexts(self) -> Iterator[tuple[int, int]]:
        """(VMSA, CAA) of every VMPL 3 context."""
        for vcpu in self.vcpus:
            yield from vcpu.guest_vmsas.items()

    def uses_caa(self, gpa: int) -> bool:
        """Is the page a calling area?"""
        return any(gpa in vcpu.guest_vmsas.values() for vcpu in self.vcpus)

    def state(self) -> list[dict[str, Any]]:
        """For a snapshot."""
        return [
            {
                "apic_id": vcpu.apic_id,
                "monitor_vmsa": vcpu.monitor_vmsa,
                "service_vmsa": vcpu.service_vmsa,
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
                dict(item["guest_vmsas"]),
                service_vmsa=item["service_vmsa"],
            )
            for item in state
        ]
        return self
