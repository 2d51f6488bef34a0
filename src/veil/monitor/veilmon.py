# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilMon: boots first, hands the machine to the kernel at VMPL 3, and serves its calls for ever after."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Generator, Sequence
from typing import Any

from veil.monitor import boot, ghcb
from veil.monitor.domains import DomainTable, VcpuContexts
from veil.monitor.errors import MonitorError, Reason
from veil.monitor.memory import GUEST_VMPL, PAGE, retry
from veil.monitor.pages import Owner, PageBook
from veil.monitor.parameters import MonitorParameters
from veil.monitor.protocols.core import CoreProtocol
from veil.monitor.requests import Request, Result, ResultCode
from veil.monitor.service import Service, ServiceContext
from veil.snp.errors import RmpViolation
from veil.snp.hosted import HostedCpu
from veil.snp.layouts import Vmsa
from veil.snp.rmp import FAULT_SIZEM

__all__ = ["VeilMon"]

_RUN_GUEST = GUEST_VMPL << 32 | 0x016
_VMGEXIT = 0x403
_SVME = 1 << 12
_FEATURE_SNP, _FEATURE_AP_CREATION, _FEATURE_MULTI_VMPL = 1 << 0, 1 << 1, 1 << 5
_FEATURES_NEEDED = _FEATURE_SNP | _FEATURE_AP_CREATION | _FEATURE_MULTI_VMPL

_EFER = Vmsa.efer.offset
_RAX = Vmsa.rax.offset
_RCX = Vmsa.rcx.offset
_RDX = Vmsa.rdx.offset
_R8 = Vmsa.r8.offset
_R9 = Vmsa.r9.offset
_EXIT_CODE = Vmsa.guest_exit_code.offset
#: The part of a VMSA that a call needs, from EFER to the exit code, copied at once.
_CALL_PART = _EXIT_CODE + 8 - _EFER
_U64 = struct.Struct("<Q").unpack_from

_UNSUPPORTED_PROTOCOL = Result(ResultCode.UNSUPPORTED_PROTOCOL)


class VeilMon:
    """The monitor as a hosted program; one object for all VCPUs."""

    def __init__(self, services: Sequence[Service] = ()) -> None:
        self.parameters: MonitorParameters | None = None
        self.book = PageBook(0)
        self.domains = DomainTable(0)
        self.sev_features = 0
        self._services = list(services)
        self._protocols: dict[int, Any] = {}

    # Hosted program

    def run(self, cpu: HostedCpu) -> Generator[None, None, None]:
        """Start: the first VCPU boots the machine, the others join."""
        try:
            if self.parameters is None:
                yield from self._boot(cpu)
            else:
                yield from self._join(cpu)
        except MonitorError as error:
            self.last_error = str(error)
            yield from ghcb.terminate(cpu, error.reason)

    def resume(self, cpu: HostedCpu) -> Generator[None, None, None]:
        """Go on after a snapshot: every VCPU was in its serving loop."""
        vcpu = next(item for item in self.domains.vcpus if item.monitor_vmsa == cpu.vmsa_gpa)
        self._attach(cpu)
        yield from self._serve(cpu, vcpu, resumed=True)

    def save(self) -> bytes:
        """Everything that is not in guest memory."""
        assert self.parameters is not None
        state = {
            "parameters": base64.b64encode(bytes(self.parameters)).decode(),
            "domains": self.domains.state(),
            "sev_features": self.sev_features,
            "services": {item.name: base64.b64encode(item.save()).decode() for item in self._services},
        }
        return json.dumps(state).encode()

    def restore(self, data: bytes) -> None:
        """Take back what `save` gave."""
        state = json.loads(data)
        self.parameters = MonitorParameters.parse(base64.b64decode(state["parameters"]))
        self.domains = DomainTable.load(state["domains"])
        self.sev_features = state["sev_features"]
        self.book = boot.make_page_book(self.parameters)
        self.book.claim(self.parameters.guest_vmsa_gpa, PAGE, Owner.GUEST)
        for vcpu in self.domains.vcpus:
            for vmsa in vcpu.guest_vmsas:
                self.book.claim(vmsa, PAGE, Owner.VMSA)
        self._saved_services = {name: base64.b64decode(item) for name, item in state["services"].items()}

    last_error: str | None = None
    _saved_services: dict[str, bytes] | None = None

    # Boot

    def _boot(self, cpu: HostedCpu) -> Generator[None, None, None]:
        parameters = MonitorParameters.parse(cpu.parameters)
        self.parameters = parameters
        self.book = boot.make_page_book(parameters)
        self.domains = DomainTable(parameters.vcpus)
        if (yield from ghcb.host_features(cpu)) & _FEATURES_NEEDED != _FEATURES_NEEDED:
            raise MonitorError(Reason.HOST_LACKS_FEATURES, "the host lacks SNP AP creation or multiple VMPLs")
        yield from boot.take_memory(cpu, parameters, self.book)
        yield from self._make_ghcb(cpu, parameters)
        self.sev_features = boot.prepare_guest(cpu, parameters)
        self._attach(cpu)

        first = self.domains.vcpus[0]
        first.monitor_vmsa = cpu.vmsa_gpa
        first.guest_vmsa = parameters.guest_vmsa_gpa
        first.caa = parameters.guest_caa_gpa
        first.guest_vmsas[first.guest_vmsa] = first.caa
        requests = ghcb.Ghcb(cpu, parameters.ghcb_gpa)
        for index in range(1, parameters.vcpus):
            vmsa = boot.make_monitor_vmsa(cpu, parameters, index)
            yield from requests.create_vcpu(index, 0, vmsa, self.sev_features)
        yield from requests.create_vcpu(0, GUEST_VMPL, first.guest_vmsa, self.sev_features)
        yield from self._serve(cpu, first)

    def _make_ghcb(self, cpu: HostedCpu, parameters: MonitorParameters) -> Generator[None, None, None]:
        gpa = parameters.ghcb_gpa
        cpu.view.zero(gpa, PAGE)
        yield from retry(cpu, lambda: cpu.view.pvalidate(gpa, validate=False))
        yield from ghcb.share_page(cpu, gpa)
        yield from ghcb.register_ghcb(cpu, gpa)

    def _join(self, cpu: HostedCpu) -> Generator[None, None, None]:
        vcpu = self.domains.by_apic_id(cpu.start_argument)
        if vcpu is None or vcpu.monitor_vmsa is not None:
            raise MonitorError(Reason.GENERAL, "a VCPU started in the monitor that was not asked to")
        vcpu.monitor_vmsa = cpu.vmsa_gpa
        yield from ghcb.ap_reset_hold(cpu)
        yield from self._serve(cpu, vcpu, resumed=True)

    def _attach(self, cpu: HostedCpu) -> None:
        """Protocols and services, once."""
        if self._protocols:
            return
        self._protocols[CoreProtocol.number] = CoreProtocol(self, cpu.view)
        assert self.parameters is not None
        gpa = self.parameters.services.gpa
        for item in self._services:
            context = ServiceContext(cpu.view, gpa, item.memory, self.book)
            gpa += item.memory
            if gpa > self.parameters.services.gpa + self.parameters.services.size:
                raise MonitorError(Reason.BAD_PARAMETERS, f"no memory left for the service {item.name}")
            if self._saved_services is None:
                item.start(context)
            else:
                item.restore(self._saved_services[item.name], context)
            self._protocols[item.protocol] = item

    def protocol_versions(self, number: int) -> tuple[int, int] | None:
        """Lowest and highest version of a protocol, if it is offered."""
        protocol = self._protocols.get(number)
        return protocol.versions if protocol is not None else None

    # Serving

    def _serve(self, cpu: HostedCpu, vcpu: VcpuContexts, *, resumed: bool = False) -> Generator[None, None, None]:
        """Run the kernel; each time the host comes back, see whether it called.

        After a snapshot or a reset hold the host is already on its way back when this starts.
        """
        if not resumed:
            cpu.ghcb_msr = _RUN_GUEST
            yield
        while True:
            while (violation := self._answer(cpu, vcpu)) is not None:
                cpu.nested_fault(violation)
                yield
            cpu.ghcb_msr = _RUN_GUEST
            yield

    def _answer(self, cpu: HostedCpu, vcpu: VcpuContexts) -> RmpViolation | None:
        """Serve the call of this VCPU's kernel context, if it made one.

        Returns a refusal that the host must mend (a 2 MiB RMP entry to split) before the call can go on; the call is
        still pending then.
        """
        vmsa = vcpu.guest_vmsa
        caa = vcpu.caa
        if vmsa is None or caa is None:
            return None
        view = cpu.view
        part = view.read(vmsa + _EFER, _CALL_PART)
        if _U64(part, _EXIT_CODE - _EFER)[0] != _VMGEXIT:
            # The host came here by itself: there is no call, whatever stands in the calling area.
            return None
        efer: int = _U64(part, 0)[0]
        try:
            if not view.read_u8(caa):
                return None
        except RmpViolation:
            return None  # the kernel gave its calling area away: it gets no answer
        # The host must not run the caller while its registers are half written.
        view.write_u64(vmsa + _EFER, efer & ~_SVME)
        rax: int = _U64(part, _RAX - _EFER)[0]
        request = Request(
            vcpu.apic_id,
            rax >> 32,
            rax & 0xFFFFFFFF,
            _U64(part, _RCX - _EFER)[0],
            _U64(part, _RDX - _EFER)[0],
            _U64(part, _R8 - _EFER)[0],
            _U64(part, _R9 - _EFER)[0],
        )
        protocol = self._protocols.get(request.protocol)
        try:
            result = protocol.call(request) if protocol is not None else _UNSUPPORTED_PROTOCOL
        except RmpViolation as violation:
            if violation.fault & FAULT_SIZEM:
                return violation
            result = Result(ResultCode.INVALID_ADDRESS)
        view.write_u64(vmsa + _RAX, result.code)
        for offset, value in ((_RCX, result.rcx), (_RDX, result.rdx), (_R8, result.r8), (_R9, result.r9)):
            if value is not None:
                view.write_u64(vmsa + offset, value)
        try:
            view.exchange_u8(caa, 0)
        except RmpViolation:
            pass  # the call itself took the calling area away
        view.write_u64(vmsa + _EFER, efer | _SVME)
        return None
