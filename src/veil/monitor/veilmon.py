# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilMon: boots first, hands the machine to the kernel at VMPL 3, and serves its calls from then on."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

from veil.formats.domains import KERNEL_VMPL, MONITOR_VMPL, SERVICE_VMPL, Domain
from veil.formats.ghcb import RUN_VMPL_REFUSED, MsrRequest, run_vmpl_request
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.termination import MonitorReason
from veil.monitor import boot, ghcb
from veil.monitor.attestation import Attestation
from veil.monitor.channel.link import ChannelLink
from veil.monitor.channel.tls import ChannelKey
from veil.monitor.channel.user_requests import Requests
from veil.monitor.contexts import DomainTable, VcpuContexts
from veil.monitor.errors import MonitorError
from veil.monitor.grants_broker import Grants
from veil.monitor.page_book import PageBook
from veil.monitor.parameters import MonitorParameters, Option
from veil.monitor.protocols.attestation import AttestationProtocol
from veil.monitor.protocols.core import CoreProtocol
from veil.monitor.protocols.services_setup import ServicesProtocol
from veil.monitor.refused_accesses import decide_refusal, is_refusal
from veil.monitor.secure_processor import GuestMessages
from veil.monitor.services_mailbox import ServicesMailbox, ServicesUnavailable
from veil.monitor.state import MonitorState
from veil.monitor.svsm_dispatch import Served, Unfinished, answer, finish
from veil.snp.errors import RmpViolation, SnapshotError
from veil.snp.hosted import HostedCpu

__all__ = ["VeilMon"]

_RUN_KERNEL = run_vmpl_request(KERNEL_VMPL)
_RUN_SERVICES = run_vmpl_request(SERVICE_VMPL)
_AP_RESET_HOLD = int(MsrRequest.AP_RESET_HOLD)
_DONE = Served.DONE


class VeilMon:
    """The monitor as a hosted program; one object for all VCPUs."""

    def __init__(self) -> None:
        #: why the monitor gave up, if it did
        self.last_error: str | None = None
        self._state: MonitorState | None = None
        self._saved: dict[str, Any] | None = None
        #: each VCPU's way to ask the host, by APIC ID
        self._hosts: dict[int, ghcb.Ghcb] = {}
        self._key: ChannelKey | None = None
        self._messages: GuestMessages | None = None
        self._channel: ChannelLink | None = None
        self._grants: Grants | None = None
        self._mailbox: ServicesMailbox | None = None

    @property
    def state(self) -> MonitorState:
        """What the monitor knows; there is none before it booted."""
        if self._state is None:
            raise MonitorError(MonitorReason.GENERAL, "the monitor has not booted")
        return self._state

    @property
    def book(self) -> PageBook:
        """The owner of each page."""
        return self.state.book

    @property
    def domains(self) -> DomainTable:
        """Which VMSA runs which domain on which VCPU."""
        return self.state.domains

    # Hosted program

    def run(self, cpu: HostedCpu) -> Generator[None, None, None]:
        """Start: the first VCPU boots the machine, the others join."""
        try:
            vcpu = (yield from self._join(cpu)) if self._state is not None else (yield from self._boot(cpu))
            yield from self._serve(cpu, vcpu)
        except MonitorError as error:
            self.last_error = str(error)
            yield from ghcb.terminate(cpu, error.reason)

    def resume(self, cpu: HostedCpu) -> Generator[None, None, None]:
        """Go on after a snapshot: every VCPU was waiting in its serving loop."""
        try:
            vcpu = self.domains.holder(Domain.MON, cpu.vmsa_gpa)
            if vcpu is None:
                raise MonitorError(MonitorReason.GENERAL, f"the snapshot has no VCPU with a VMSA at {cpu.vmsa_gpa:#x}")
            gpa = self.state.parameters.ghcb_gpa + vcpu.apic_id * PAGE_SIZE
            self._hosts[vcpu.apic_id] = ghcb.Ghcb(cpu, gpa)
            if not self.state.protocols:
                self._offer_protocols(cpu)
            yield from self._serve(cpu, vcpu, waiting=True)
        except MonitorError as error:
            self.last_error = str(error)
            yield from ghcb.terminate(cpu, error.reason)

    def save(self) -> bytes:
        """Everything that is not in guest memory."""
        state = self.state
        if self._saved is not None and self._channel is None:
            return json.dumps(self._saved).encode()  # restored, and not resumed yet
        if self._key is None or self._messages is None or self._channel is None:
            raise SnapshotError("VeilMon has not finished its boot: run the machine on, then save it")
        unfinished = any(vcpu.unfinished is not None for vcpu in self.domains.vcpus)
        granting = self._grants is not None and self._grants.busy
        telling = self._mailbox is not None and self._mailbox.busy
        if self._messages.busy or self._channel.working or unfinished or granting or telling:
            raise SnapshotError("VeilMon waits for the host in the middle of a call: run the machine on, then save it")
        saved = {
            **state.dump(),
            "channel": self._channel.dump(),
        }
        return json.dumps(saved).encode()

    def restore(self, data: bytes) -> None:
        """Take back what `save` gave."""
        self._saved = json.loads(data)
        self._state = MonitorState.load(self._saved)

    # Boot

    def _boot(self, cpu: HostedCpu) -> Generator[None, None, VcpuContexts]:
        parameters = MonitorParameters.parse(cpu.parameters)
        state = self._state = MonitorState.at_launch(parameters)
        yield from boot.check_host(cpu)
        yield from boot.take_memory(cpu, state)
        boot.check_cpuid(cpu, parameters)
        yield from boot.share_memory(cpu, parameters)
        host = self._hosts[0] = yield from boot.own_ghcb(cpu, parameters, 0)
        yield from boot.prepare_kernel(cpu, state)
        if parameters.service_code.size:
            yield from self._start_services(cpu, host)
        channel = self._offer_protocols(cpu)
        yield from channel.announce(host)
        first = state.domains.vcpus[0]
        first.contexts[Domain.MON].add(cpu.vmsa_gpa)
        for vcpu in state.domains.vcpus[1:]:
            vmsa = yield from boot.make_monitor_vmsa(cpu, parameters, vcpu.apic_id)
            vcpu.contexts[Domain.MON].add(vmsa)
            yield from host.create_vcpu(vcpu.apic_id, MONITOR_VMPL, vmsa, state.sev_features)
        yield from host.create_vcpu(0, KERNEL_VMPL, parameters.kernel_vmsa_gpa, state.sev_features)
        return first

    def _start_services(self, cpu: HostedCpu, host: ghcb.Ghcb) -> Generator[None, None, None]:
        """A VMSA of VMPL 1 on every VCPU; on this one, the services start and say who they are."""
        state = self.state
        for vcpu in state.domains.vcpus:
            vmsa = yield from boot.make_service_vmsa(cpu, state.parameters, vcpu.apic_id)
            vcpu.contexts[Domain.SER].add(vmsa)
            yield from host.create_vcpu(vcpu.apic_id, SERVICE_VMPL, vmsa, state.sev_features)
        try:
            state.know_services((yield from self._services_mailbox(cpu).describe(host)))
        except ServicesUnavailable as error:
            raise MonitorError(MonitorReason.BAD_SERVICES, f"the services did not start: {error}") from error

    def _join(self, cpu: HostedCpu) -> Generator[None, None, VcpuContexts]:
        vcpu = self.domains.holder(Domain.MON, cpu.vmsa_gpa)
        if vcpu is None or vcpu.apic_id != cpu.start_argument:
            raise MonitorError(MonitorReason.GENERAL, "a VCPU started in the monitor that was not asked to")
        self._hosts[vcpu.apic_id] = yield from boot.own_ghcb(cpu, self.state.parameters, vcpu.apic_id)
        return vcpu

    def _offer_protocols(self, cpu: HostedCpu) -> ChannelLink:
        state = self.state
        state.protocols[CoreProtocol.number] = CoreProtocol(state, cpu.view)
        if state.parameters.service_code.size:
            state.protocols[ServicesProtocol.number] = ServicesProtocol(state, cpu.view)
        return self._offer_attestation(cpu)

    def _offer_attestation(self, cpu: HostedCpu) -> ChannelLink:
        # After a snapshot, too, keys are new: several machines may come from one, and none may speak for another. The
        # secure processor has made a new VMPCK and counts messages from the beginning.
        state, saved = self.state, self._saved or {}
        parameters = state.parameters
        key = self._key = ChannelKey()
        messages = self._messages = GuestMessages(cpu.view, parameters)
        attestation = Attestation(messages, key.public_bytes, state.services)
        state.protocols[AttestationProtocol.number] = AttestationProtocol(
            attestation, state.book, cpu.view, self._hosts
        )
        domain = self._services_mailbox(cpu)
        assert self._grants is not None
        self._grants.messages = messages
        requests = Requests(attestation, domain, state.services, self.describe)
        self._channel = ChannelLink(
            cpu.view, parameters.channel, requests, key.accept, parameters.roles(), cpu.tsc, saved.get("channel")
        )
        return self._channel

    def _services_mailbox(self, cpu: HostedCpu) -> ServicesMailbox:
        if self._grants is None or self._mailbox is None:
            self._grants = Grants(self.state)
            self._mailbox = ServicesMailbox(cpu.view, self.state.parameters, self._grants)
        return self._mailbox

    def describe(self) -> dict[str, Any]:
        """The answer to STATUS."""
        parameters = self.state.parameters
        return {
            "vcpus": parameters.vcpus,
            "protected": not parameters.options & Option.UNPROTECTED,
            "kernel_vcpus": sum(vcpu.kernel.vmsa is not None for vcpu in self.domains.vcpus),
            "services": {service.name: str(service.guid) for service in self.state.services},
        }

    # Serving

    def _serve(self, cpu: HostedCpu, vcpu: VcpuContexts, *, waiting: bool = False) -> Generator[None, None, None]:
        """Run the kernel; each time the host comes back, see whether it called.

        `waiting`: after a snapshot the host is on its way back already when this starts.
        """
        state, view, grants, channel = self.state, cpu.view, self._grants, self._channel
        assert grants is not None
        assert channel is not None
        host, kernel = self._hosts[vcpu.apic_id], vcpu.kernel
        can_run, for_services = True, False
        while True:
            if not waiting:
                # A VCPU whose kernel context was not created, or is not known to the host yet, waits for the host.
                can_run = can_run and kernel.vmsa is not None
                cpu.ghcb_msr = _RUN_KERNEL if can_run else _AP_RESET_HOLD
                # The services' domain asked for something, and waits.
                for_services = grants.is_asked(view)
                if for_services:
                    yield from grants.serve(host)
                    cpu.ghcb_msr = _RUN_SERVICES
                yield
            waiting = False
            can_run = for_services or cpu.ghcb_msr != RUN_VMPL_REFUSED
            if (outcome := answer(state, view, vcpu)) is _DONE:
                continue
            while isinstance(outcome, RmpViolation):
                cpu.nested_fault(outcome)
                yield
                outcome = answer(state, view, vcpu)
            if isinstance(outcome, Unfinished):
                vcpu.unfinished = outcome.vmsa
                yield from finish(view, outcome, lambda: self._tell(cpu, vcpu))
                vcpu.unfinished = None
            elif outcome is _DONE:
                continue
            elif is_refusal(state, host, vcpu):
                yield from decide_refusal(state, self._services_mailbox(cpu), host, vcpu)
            elif channel.due:
                # The host came by itself, and once for what users sent: passed over, they would wait for good.
                yield from channel.work(host, vcpu.apic_id)

    def _tell(self, cpu: HostedCpu, vcpu: VcpuContexts) -> Generator[None, None, None]:
        """The services hear what was done for the kernel."""
        hearing = self.state.hearing
        if hearing is not None and hearing.waits:
            yield from self._services_mailbox(cpu).tell(self._hosts[vcpu.apic_id], vcpu.apic_id, hearing)
