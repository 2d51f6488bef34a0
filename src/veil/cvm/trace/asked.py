# SPDX-License-Identifier: GPL-2.0-or-later
"""What a level asks of another one when it gives way to it: read from registers and request blocks, which no host can.

All of it may be a hostile guest's: numbers that stand for nothing get no name of their own.
"""

from __future__ import annotations

import ctypes
import enum
import importlib
from typing import TYPE_CHECKING, NamedTuple

from veil.formats.domains import ENCLAVE_VMPL, KERNEL_VMPL, MONITOR_VMPL, SERVICE_VMPL
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.request_block import BLOCK_START
from veil.formats.service_catalogue import SERVICES
from veil.formats.service_domain import BLOCK_ENTRY, SERVICES_DOMAIN, DomainCall
from veil.formats.svsm_calls import AttestationCall, CoreCall, ServicesCall, SvsmProtocol
from veil.image.services_image import BLOCKS, CODE, MAILBOX
from veil.snp import SnpError
from veil.snp.layouts import Vmsa

if TYPE_CHECKING:
    from collections.abc import Mapping

    from veil.host import Hypervisor
    from veil.snp import Machine

__all__ = ["Asked", "Request"]

_SVSM: Mapping[int, type[enum.IntEnum]] = {
    SvsmProtocol.CORE: CoreCall,
    SvsmProtocol.ATTESTATION: AttestationCall,
    SvsmProtocol.SERVICES: ServicesCall,
}


def _calls(place: str) -> type[enum.IntEnum]:
    module, _, name = place.partition(":")
    found: type[enum.IntEnum] = getattr(importlib.import_module(module), name)
    return found


#: by service: its name, and what the kernel may call
_SERVICE_CALLS: Mapping[int, tuple[str, type[enum.IntEnum]]] = {
    service.number: (name, _calls(service.kernel_calls)) for name, service in SERVICES.items()
}


class Request(NamedTuple):
    """`category` and `name` are from small sets; `values` are whatever stood there."""

    category: str
    name: str
    values: dict[str, int | str]


class Asked:
    """Looks into one machine."""

    def __init__(self, machine: Machine, hypervisor: Hypervisor) -> None:
        self._machine = machine
        self._host = hypervisor

    def request(self, vcpu: int, asking: int, target: int) -> Request | None:
        """What the level `asking` of a VCPU wants of `target`; None: it gives way, with an answer or for nothing."""
        if asking == KERNEL_VMPL and target == MONITOR_VMPL:
            return self._svsm_call(vcpu)
        if not self._host.has_veilmon:
            # Another monitor's levels are what it makes of them.
            return None
        if asking == KERNEL_VMPL and target == ENCLAVE_VMPL:
            return Request("enclave", "enclave runs", {})
        services = self._services(vcpu) if target == SERVICE_VMPL else None
        if services is None:
            return None
        if asking == KERNEL_VMPL:
            entry = self._read(services + BLOCKS + vcpu * BLOCK_ENTRY.size, BLOCK_ENTRY.size)
            block, size = BLOCK_ENTRY.unpack(entry)
            return self._block(block, _SERVICE_CALLS) if size else None
        return self._block(services + MAILBOX, {SERVICES_DOMAIN: ("services", DomainCall)})

    def result(self, vcpu: int) -> int | None:
        """RAX of the kernel: the answer to its last SVSM call."""
        vmsa = self._vmsa(vcpu, KERNEL_VMPL)
        return vmsa.rax if vmsa is not None else None

    def _svsm_call(self, vcpu: int) -> Request:
        vmsa = self._vmsa(vcpu, KERNEL_VMPL)
        if vmsa is None:
            return Request("svsm", "SVSM", {})
        protocol, call = vmsa.rax >> 32, vmsa.rax & 0xFFFFFFFF
        name = "SVSM"
        if protocol in _SVSM:
            name = f"SVSM {SvsmProtocol(protocol).name} {_name(_SVSM[protocol], call)}"
        registers: dict[str, int | str] = {name: getattr(vmsa, name) for name in ("rcx", "rdx", "r8", "r9")}
        return Request("svsm", name, {"protocol": protocol, "call": call, **registers})

    def _block(self, gpa: int, services: Mapping[int, tuple[str, type[enum.IntEnum]]]) -> Request | None:
        pending, _, service, call, length = BLOCK_START.unpack(self._read(gpa, BLOCK_START.size))
        if not pending:
            return None
        name = "service request"
        if service in services:
            label, calls = services[service]
            name = f"{label} {_name(calls, call)}"
        return Request("service", name, {"service": service, "call": call, "bytes": length})

    def _services(self, vcpu: int) -> int | None:
        """Where the services' region begins: their VMSAs start at their program."""
        vmsa = self._vmsa(vcpu, SERVICE_VMPL)
        return vmsa.rip - CODE if vmsa is not None else None

    def _vmsa(self, vcpu: int, vmpl: int) -> Vmsa | None:
        context = self._host.vcpus[vcpu].contexts.get(vmpl)
        if context is None:
            return None
        data = self._read(context.vmcb.vmsa_pa, ctypes.sizeof(Vmsa))
        return Vmsa.from_buffer_copy(data)

    def _read(self, gpa: int, length: int) -> bytes:
        """As the most privileged level finds it; zeros where that finds nothing."""
        if 0 <= gpa <= self._machine.memory.size - PAGE_SIZE:
            try:
                return self._machine.view(vmpl=MONITOR_VMPL).read(gpa, length)
            except SnpError:
                pass
        return bytes(length)


def _name(calls: type[enum.IntEnum], call: int) -> str:
    try:
        return calls(call).name
    except ValueError:
        return "?"
