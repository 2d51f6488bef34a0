# SPDX-License-Identifier: GPL-2.0-or-later
"""The domain table and VCPU replication: every VCPU has one VMSA, or more, for each domain that runs on it.

DomENC has as many as there are threads of enclaves, on whichever VCPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from veil.formats.domains import Domain

__all__ = ["DomainContexts", "DomainTable", "VcpuContexts"]


@dataclass(slots=True)
class DomainContexts:
    """What one domain has on one VCPU. Of several VMSAs `vmsa`, with its calling area `caa`, is the one that runs.

    The kernel has several for a while when a CPU comes back: it gets a new one before the old one is deleted.
    """

    vmsa: int | None = None
    caa: int | None = None
    vmsas: dict[int, int | None] = field(default_factory=dict)
    """VMSA -> its calling area, for every context that was created and not deleted. Only a kernel has calling areas."""

    def add(self, vmsa: int, caa: int | None = None) -> None:
        """A context, which runs from now on."""
        self.vmsas[vmsa] = caa
        self.vmsa, self.caa = vmsa, caa

    def remap(self, caa: int) -> int | None:
        """Another calling area for the context that runs; returns the old one."""
        assert self.vmsa is not None
        old, self.caa = self.caa, caa
        self.vmsas[self.vmsa] = caa
        return old

    def drop(self, vmsa: int) -> int | None:
        """Forget a context; returns its calling area."""
        if self.vmsa == vmsa:
            self.vmsa = self.caa = None
        return self.vmsas.pop(vmsa)


class VcpuContexts:
    """One VCPU's contexts, of all domains but DomENC."""

    __slots__ = ("apic_id", "contexts", "deciding", "kernel", "unfinished")

    def __init__(self, apic_id: int) -> None:
        self.apic_id = apic_id
        self.contexts: dict[Domain, DomainContexts] = {
            domain: DomainContexts() for domain in Domain if domain is not Domain.ENC
        }
        #: of DomUNT, which each call asks for
        self.kernel = self.contexts[Domain.UNT]
        #: the VMSA whose call waits for the host; its registers will be written when it is done
        self.unfinished: int | None = None
        #: the VMSA whose refused access the services decide: they may read what it could; it is unfinished as well
        self.deciding: int | None = None

    def vmsas(self) -> dict[Domain, int]:
        """The VMSA of each domain that can run on this VCPU now."""
        return {domain: mine.vmsa for domain, mine in self.contexts.items() if mine.vmsa is not None}


class DomainTable:
    """All VCPUs by APIC ID, which are numbered from 0."""

    def __init__(self, vcpus: int) -> None:
        self.vcpus = [VcpuContexts(apic_id) for apic_id in range(vcpus)]
        #: the VMSAs of DomENC, which belong to no VCPU: each may run on each of them
        self.enclaves: set[int] = set()

    def by_apic_id(self, apic_id: int) -> VcpuContexts | None:
        """The VCPU, or None."""
        return self.vcpus[apic_id] if 0 <= apic_id < len(self.vcpus) else None

    def holder(self, domain: Domain, vmsa: int) -> VcpuContexts | None:
        """The VCPU that has this VMSA of a domain."""
        return next((vcpu for vcpu in self.vcpus if vmsa in vcpu.contexts[domain].vmsas), None)

    def uses_caa(self, gpa: int) -> bool:
        """Is the page a calling area?"""
        return any(gpa in vcpu.kernel.vmsas.values() for vcpu in self.vcpus)

    def dump(self) -> dict[str, Any]:
        vcpus = [
            {
                domain.name: {"vmsa": mine.vmsa, "caa": mine.caa, "vmsas": sorted(mine.vmsas.items())}
                for domain, mine in vcpu.contexts.items()
            }
            for vcpu in self.vcpus
        ]
        return {"vcpus": vcpus, "enclaves": sorted(self.enclaves)}

    @classmethod
    def load(cls, state: dict[str, Any]) -> DomainTable:
        """From a snapshot."""
        self = cls(len(state["vcpus"]))
        self.enclaves = set(state["enclaves"])
        for vcpu, item in zip(self.vcpus, state["vcpus"], strict=True):
            for domain, mine in vcpu.contexts.items():
                saved = item[domain.name]
                mine.vmsa, mine.caa, mine.vmsas = saved["vmsa"], saved["caa"], dict(saved["vmsas"])
        return self
