# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilMon: boots first, hands the machine to the kernel at VMPL 3, and serves its calls for ever after."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import ClassVar

from veil.monitor import boot, ghcb
from veil.monitor.domains import DomainTable, VcpuContexts
from veil.monitor.errors import MonitorError, Reason
from veil.monitor.memory import GUEST_VMPL, PAGE
from veil.monitor.pages import PageBook
from veil.monitor.parameters import MonitorParameters
from veil.monitor.protocols.core import CoreProtocol
from veil.monitor.service import FIRST_SERVICE_PROTOCOL, Service, ServiceContext
from veil.monitor.serving import answer
from veil.monitor.state import MonitorState
from veil.snp.hosted import HostedCpu

__all__ = ["VeilMon"]


class VeilMon:
    """The monitor as a hosted program; one object for all VCPUs.

    A monitor with protected services is a subclass that names them, and the entry of the measured image names that
    subclass: which services there are is part of what is measured.
    """

    service_types: ClassVar[tuple[type[Service], ...]] = ()

    def __init__(self) -> None:
        self.services = [kind() for kind in self.service_types]
        #: why the monitor gave up, if it did
        self.last_error: str | None = None
        self._state: MonitorState | None = None
        self._saved_services: dict[str, str] | None = None

    @property
    def state(self) -> MonitorState:
        """What the monitor knows; there is none before it booted."""
        if self._state is None:
            raise MonitorError(Reason.GENERAL, "the monitor has not booted")
        return self._state

    @property
    def book(self) -> PageBook:
        """Who owns which page."""
        return self.state.book

    @property
    def domains(self) -> DomainTable:
        """Which VMSA runs which domain on which VCPU."""
        return self.state.domains

    # Hosted program

    def run(self, cpu: HostedCpu) -> Generator[None, None, None]:
        """Start: the first VCPU boots the machine, the others join."""
        try:
            vcpu = self._join(cpu) if self._state is not None else (yield from self._boot(cpu))
            yield from self._serve(cpu, vcpu)
        except MonitorError as error:
            self.last_error = str(error)
            yield from ghcb.terminate(cpu, error.reason)

    def resume(self, cpu: HostedCpu) -> Generator[None, None, None]:
        """Go on after a snapshot: every VCPU was waiting in its serving loop."""
        try:
            vcpu = self.domains.by_monitor_vmsa(cpu.vmsa_gpa)
            if vcpu is None:
                raise MonitorError(Reason.GENERAL, f"the snapshot has no VCPU with a VMSA at {cpu.vmsa_gpa:#x}")
            if not self.state.protocols:
                self._offer_protocols(cpu)
            yield from self._serve(cpu, vcpu, waiting=True)
        except MonitorError as error:
            self.last_error = str(error)
            yield from ghcb.terminate(cpu, error.reason)

    def save(self) -> bytes:
        """Everything that is not in guest memory."""
        services = {service.name: service.save().hex() for service in self.services}
        return json.dumps({**self.state.dump(), "services": services}).encode()

    def restore(self, data: bytes) -> None:
        """Take back what `save` gave."""
        saved = json.loads(data)
        self._state = MonitorState.load(saved)
        self._saved_services = saved["services"]

    # Boot

    def _boot(self, cpu: HostedCpu) -> Generator[None, None, VcpuContexts]:
        parameters = MonitorParameters.parse(cpu.parameters)
        state = self._state = MonitorState.at_launch(parameters)
        yield from boot.check_host(cpu)
        yield from boot.take_memory(cpu, state)
        requests = yield from boot.make_ghcb(cpu, parameters.ghcb_gpa)
        yield from boot.prepare_guest(cpu, state)
        self._offer_protocols(cpu)
        first = state.domains.vcpus[0]
        first.monitor_vmsa = cpu.vmsa_gpa
        for vcpu in state.domains.vcpus[1:]:
            vcpu.monitor_vmsa = yield from boot.make_monitor_vmsa(cpu, parameters, vcpu.apic_id)
            yield from requests.create_vcpu(vcpu.apic_id, 0, vcpu.monitor_vmsa, state.sev_features)
        yield from requests.create_vcpu(0, GUEST_VMPL, parameters.guest_vmsa_gpa, state.sev_features)
        return first

    def _join(self, cpu: HostedCpu) -> VcpuContexts:
        vcpu = self.domains.by_monitor_vmsa(cpu.vmsa_gpa)
        if vcpu is None or vcpu.apic_id != cpu.start_argument:
            raise MonitorError(Reason.GENERAL, "a VCPU started in the monitor that was not asked to")
        return vcpu

    def _offer_protocols(self, cpu: HostedCpu) -> None:
        state = self.state
        protocols = state.protocols
        protocols[CoreProtocol.number] = CoreProtocol(state, cpu.view)
        own = cpu.view.lower(1)
        region = state.parameters.services
        gpa = region.gpa
        for service in self.services:
            if service.memory % PAGE or gpa + service.memory > region.end:
                raise MonitorError(Reason.BAD_PARAMETERS, f"no memory left for the service {service.name}")
            if service.protocol in protocols or service.protocol < FIRST_SERVICE_PROTOCOL:
                raise MonitorError(Reason.BAD_PARAMETERS, f"the protocol number of the service {service.name} is taken")
            service.context = ServiceContext(own, gpa, service.memory, cpu.view, state.book)
            if self._saved_services is None:
                service.start()
            else:
                service.restore(bytes.fromhex(self._saved_services.get(service.name, "")))
            protocols[service.protocol] = service
            gpa += service.memory

    # Serving

    def _serve(self, cpu: HostedCpu, vcpu: VcpuContexts, *, waiting: bool = False) -> Generator[None, None, None]:
        """Run the kernel; each time the host comes back, see whether it called.

        `waiting`: after a snapshot the host is on its way back already when this starts.
        """
        state, view = self.state, cpu.view
        can_run = True
        while True:
            if not waiting:
                # A VCPU whose kernel context was not created, or is not known to the host yet, waits for the host.
                can_run = can_run and vcpu.guest_vmsa is not None
                cpu.ghcb_msr = ghcb.RUN_GUEST if can_run else ghcb.AP_RESET_HOLD
                yield
            waiting = False
            can_run = cpu.ghcb_msr != ghcb.RUN_REFUSED
            while (violation := answer(state, view, vcpu)) is not None:
                cpu.nested_fault(violation)
                yield
