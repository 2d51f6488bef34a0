# SPDX-License-Identifier: GPL-2.0-or-later
"""What the monitor knows, shared by its boot, its protocols and its serving loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from veil.monitor.contexts import DomainTable
from veil.monitor.page_book import Owner, PageBook
from veil.monitor.parameters import MonitorParameters
from veil.monitor.services_mailbox import ServiceInfo
from veil.monitor.svsm_call import CallHandler

__all__ = ["MonitorState"]

_PAGE = 4096


@dataclass
class MonitorState:
    """Everything but the views and the services' own state."""

    parameters: MonitorParameters
    book: PageBook
    domains: DomainTable
    sev_features: int = 0
    protocols: dict[int, CallHandler] = field(default_factory=dict)
    blocks: dict[int, tuple[int, int]] = field(default_factory=dict)
    """(GPA, size) of each VCPU's request block for the services."""
    services: list[ServiceInfo] = field(default_factory=list)

    @classmethod
    def at_launch(cls, parameters: MonitorParameters) -> MonitorState:
        """When nothing was created yet."""
        ram = parameters.ram_ranges()
        book = PageBook(max(item.gpa + item.size for item in ram) // _PAGE)
        for item in ram:
            book.claim(item.gpa, item.size, Owner.KERNEL)
        book.claim(parameters.monitor.gpa, parameters.monitor.size, Owner.MONITOR)
        book.claim(parameters.services.gpa, parameters.services.size, Owner.SERVICE)
        return cls(parameters, book, DomainTable(parameters.vcpus))

    def register_kernel(self, apic_id: int, vmsa: int, caa: int) -> None:
        """Write down a context of VMPL 3, which becomes the one that runs on its VCPU."""
        self.book.claim(vmsa, _PAGE, Owner.VMSA)
        self.book.claim(caa, _PAGE, Owner.CAA)
        self.domains.vcpus[apic_id].kernel.add(vmsa, caa)

    def release_caa(self, gpa: int) -> None:
        """One context uses this calling area no more; when none does, it is the kernel's like any other page."""
        if not self.domains.uses_caa(gpa):
            self.book.claim(gpa, _PAGE, Owner.KERNEL)

    def dump(self) -> dict[str, Any]:
        """For a snapshot: the book follows from the rest."""
        return {
            "parameters": bytes(self.parameters).hex(),
            "domains": self.domains.state(),
            "sev_features": self.sev_features,
            "blocks": [[vcpu, gpa, size] for vcpu, (gpa, size) in sorted(self.blocks.items())],
            "services": [service.dump() for service in self.services],
        }

    @classmethod
    def load(cls, state: dict[str, Any]) -> MonitorState:
        """From a snapshot."""
        self = cls.at_launch(MonitorParameters.parse(bytes.fromhex(state["parameters"])))
        self.domains = DomainTable.load(state["domains"])
        self.sev_features = state["sev_features"]
        self.blocks = {vcpu: (gpa, size) for vcpu, gpa, size in state["blocks"]}
        self.services = [ServiceInfo.load(item) for item in state["services"]]
        for gpa, size in self.blocks.values():
            self.book.claim(gpa, size, Owner.BLOCK)
        for vmsa, caa in self.domains.kernel_contexts():
            self.book.claim(vmsa, _PAGE, Owner.VMSA)
            self.book.claim(caa, _PAGE, Owner.CAA)
        return self
