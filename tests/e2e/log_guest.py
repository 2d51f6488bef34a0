# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-LOG in a booted guest, for tests: its remote user, attested, and where its memory is."""

from __future__ import annotations

import functools

from tests.e2e.hijack import Hijack
from tests.e2e.snapshots import OPEN_KERNEL
from veil import installation
from veil.cvm import ConfidentialVM
from veil.cvm.configuration import Settings
from veil.formats.log import AuditRecord, EntryKind, LogEntry, parse_records
from veil.image.services_image import PROTECTED_SERVICES, ServicesImage
from veil.remote import ChannelClient, Policy, Transport, Trust, TrustedRoots
from veil.remote.log.connect import open_log
from veil.remote.log.reader import LogReader, LogState
from veil.services import ServiceDomain
from veil.services.log import LogService
from veil.services.parameters import ServiceParameters

__all__ = [
    "DROPPING_LOG", "log_reader", "log_service", "protected_pages", "records_of", "service_parameters", "small_log",
    "trust_in", "verified",
]  # fmt: skip

_PAGE = 4096
_SMALL = 512 << 10


def small_log(full: str) -> ServicesImage:
    """VeilS-LOG with room for some thousand records."""
    settings = {**OPEN_KERNEL.settings, "log": {"memory": _SMALL, "full": full}}
    return ServicesImage(PROTECTED_SERVICES.entry, PROTECTED_SERVICES.packages, settings, memory=_SMALL)


#: Settings of a guest with one that drops what finds no room; its measured policy announces nothing but sockets.
DROPPING_LOG: Settings = {"services": small_log("drop"), "driver_options": "log_intent=bind"}


def log_reader(
    vm: ConfidentialVM, known: LogState | None = None, *, transport: Transport | None = None, timeout: float = 10.0
) -> LogReader:
    """An owner of the CVM: attests it, then reads its log."""
    client = ChannelClient(transport or vm.user_transport(timeout=timeout), identity=installation.user_key())
    return open_log(client, trust_in(vm), known=known)


def trust_in(vm: ConfidentialVM) -> Trust:
    """What a user who knows its launch digest believes in."""
    policy = Policy(measurement=(vm.machine.secure_processor.measurement,))
    return Trust(policy=policy, roots=_roots())


@functools.cache
def _roots() -> TrustedRoots:
    return TrustedRoots.amd().with_software_root(installation.software_root())


def verified(vm: ConfidentialVM) -> list[LogEntry]:
    """All entries that are there now, read by somebody new."""
    return list(log_reader(vm).fetch())


def records_of(entries: list[LogEntry], kind: EntryKind = EntryKind.RECORDS) -> list[AuditRecord]:
    """The kernel's records in them."""
    return [item for entry in entries if entry.kind == kind for item in parse_records(entry.body)]


def service_parameters(vm: ConfidentialVM) -> ServiceParameters:
    """Where the services' memory is."""
    monitor = vm.hypervisor.vcpus[0].contexts[0].vmcb.vmsa_pa & -(2 << 20)
    return ServiceParameters.parse(vm.machine.view(vmpl=0).read(monitor + (2 << 20), _PAGE))


def log_service(vm: ConfidentialVM) -> LogService:
    """The service itself, for tests that look at what it keeps. Only once it was called since the resumption."""
    program = vm.machine.hosted_program(vm.hypervisor.vcpus[0].contexts[1].vmcb.vmsa_pa)
    assert isinstance(program, ServiceDomain)
    (service,) = (service for service in program.services if isinstance(service, LogService))
    return service


def protected_pages(kernel: Hijack) -> dict[str, int]:
    """A page of each kind that the log stands on, by name."""
    at = service_parameters(kernel.vm)
    code = kernel.veilmon.state.parameters.service_code
    size = LogService.memory_size(at.settings["log"])
    return {
        "entries": at.memory_gpa,
        "end of the entries": at.memory_gpa + size - _PAGE,
        "mailbox": at.mailbox_gpa,
        "table of blocks": at.blocks_gpa,
        "settings": kernel.monitor_gpa + (2 << 20),
        "program's header": code.gpa,
        "program": code.gpa + _PAGE,
        "VMSA of VMPL 1": kernel.vm.hypervisor.vcpus[0].contexts[1].vmcb.vmsa_pa,
    }
