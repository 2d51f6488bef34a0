# SPDX-License-Identifier: GPL-2.0-or-later
"""What the monitor knows, shared by its boot, its protocols and its serving loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.service_domain import ServiceInfo
from veil.monitor.contexts import DomainTable
from veil.monitor.page_book import Owner, PageBook
from veil.monitor.page_rights import Rows
from veil.monitor.parameters import MonitorParameters, Option
from veil.monitor.service_events import Hearing
from veil.monitor.svsm_call import CallHandler

__all__ = ["MonitorState"]


@dataclass
class MonitorState:
    """Everything but the views and the services' own state."""

    parameters: MonitorParameters
    book: PageBook
    rows: Rows
    domains: DomainTable
    sev_features: int = 0
    protocols: dict[int, CallHandler] = field(default_factory=dict)
    blocks: dict[int, tuple[int, int]] = field(default_factory=dict)
    """(GPA, size) of each VCPU's request block for the services."""
    services: list[ServiceInfo] = field(default_factory=list)
    hearing: Hearing | None = None
    """What the services hear of; None if nothing."""

    @classmethod
    def at_launch(cls, parameters: MonitorParameters) -> MonitorState:
        """When nothing was created yet."""
        ram = parameters.ram_ranges()
        book = PageBook(max(item.gpa + item.size for item in ram) // PAGE_SIZE)
        for item in ram:
            book.claim(item.gpa, item.size, Owner.KERNEL)
        book.claim(parameters.monitor.gpa, parameters.monitor.size, Owner.MONITOR)
        book.claim(parameters.services.gpa, parameters.services.size, Owner.SERVICE)
        book.claim(parameters.service_code.gpa, parameters.service_code.size, Owner.SERVICE_CODE)
        rows = Rows(unprotected=bool(parameters.options & Option.UNPROTECTED))
        return cls(parameters, book, rows, DomainTable(parameters.vcpus))

    def know_services(self, services: list[ServiceInfo]) -> None:
        """Who there is at VMPL 1, by their own description."""
        self.services = services
        self.hearing = Hearing.of(services)

    def register_kernel(self, apic_id: int, vmsa: int, caa: int) -> None:
        """Write down a context of VMPL 3, which becomes the one that runs on its VCPU. The VMSA is in the book."""
        self.book.move(caa, PAGE_SIZE, Owner.CAA)
        self.domains.vcpus[apic_id].kernel.add(vmsa, caa)

    def release_caa(self, gpa: int) -> None:
        """One context uses this calling area no more; when none does, it is the kernel's like any other page."""
        if not self.domains.uses_caa(gpa):
            self.book.move(gpa, PAGE_SIZE, Owner.KERNEL)

    def dump(self) -> dict[str, Any]:
        return {
            "parameters": bytes(self.parameters).hex(),
            "book": [[owner, gpa, size] for owner, gpa, size in self.book.runs()],
            "restrictions": self.rows.dump(),
            "domains": self.domains.dump(),
            "sev_features": self.sev_features,
            "blocks": [[vcpu, gpa, size] for vcpu, (gpa, size) in sorted(self.blocks.items())],
            "services": [service.dump() for service in self.services],
            "hearing": self.hearing.dump() if self.hearing is not None else None,
        }

    @classmethod
    def load(cls, state: dict[str, Any]) -> MonitorState:
        """From a snapshot."""
        self = cls.at_launch(MonitorParameters.parse(bytes.fromhex(state["parameters"])))
        self.domains = DomainTable.load(state["domains"])
        self.sev_features = state["sev_features"]
        self.blocks = {vcpu: (gpa, size) for vcpu, gpa, size in state["blocks"]}
        self.know_services([ServiceInfo.load(item) for item in state["services"]])
        if self.hearing is not None:
            self.hearing.load(state["hearing"])
        for owner, gpa, size in state["book"]:
            self.book.claim(gpa, size, Owner(owner))
        self.rows.load(state["restrictions"])
        return self
