# SPDX-License-Identifier: GPL-2.0-or-later
"""From the measured image to a kernel that can start at VMPL 3 (docs/architecture.md, "Boot")."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable

from veil.formats.domains import KERNEL_VMPL, SERVICE_VMPL, Domain
from veil.formats.ghcb import HypervisorFeatures
from veil.formats.guest_message import KEY_BYTES
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.registers import Efer
from veil.formats.termination import MonitorReason
from veil.monitor import ghcb
from veil.monitor.errors import MonitorError
from veil.monitor.page_book import Owner
from veil.monitor.parameters import MonitorParameters, Option, Range
from veil.monitor.rmp_changes import adjust_page, grant_range, retry, validate_range
from veil.monitor.state import MonitorState
from veil.snp.hosted import HostedCpu
from veil.snp.layouts import SVSM_MAX_VERSION, SecretsPage, SevFeatures, Vmsa
from veil.snp.rmp import Permission, RmpResult

__all__ = [
    "check_cpuid",
    "check_host",
    "make_monitor_vmsa",
    "make_service_vmsa",
    "own_ghcb",
    "prepare_kernel",
    "share_memory",
    "take_memory",
]

_FEATURES_NEEDED = int(HypervisorFeatures.SNP | HypervisorFeatures.AP_CREATION | HypervisorFeatures.MULTI_VMPL)


def check_host(cpu: HostedCpu) -> Generator[None, None, None]:
    """Stop early and clearly on a host that cannot run several VMPLs."""
    missing = _FEATURES_NEEDED & ~(yield from ghcb.host_features(cpu))
    if missing:
        raise MonitorError(MonitorReason.HOST_LACKS_FEATURES, f"the host lacks the hypervisor features {missing:#x}")


def take_memory(cpu: HostedCpu, state: MonitorState) -> Generator[None, None, None]:
    """Validate what the launch did not, and give each level what it is due; all else stays VMPL 0's alone.

    Memory that firmware is to validate is left as it is. What is done to it then is done when it asks (`core_memory`).
    """
    parameters = state.parameters
    launched = sorted((item.gpa, item.end) for item in parameters.launched_ranges())
    left_alone = bool(parameters.options & Option.KERNEL_VALIDATES)
    due = [parameters.monitor, parameters.services] if left_alone else parameters.ram_ranges()
    for item in due:
        for gpa, end in _gaps(item.gpa, item.end, launched):
            yield from validate_range(cpu, gpa, end - gpa)
            # The host may have moved a page of the image here, the secrets page for one, and the kernel gets to see
            # what is here (see `core_memory`).
            cpu.view.zero(gpa, end - gpa)
    validated = [*launched, *((item.gpa, item.end) for item in due)]
    in_use = [(cpu.vmsa_gpa, cpu.vmsa_gpa + PAGE_SIZE)]  # which RMPADJUST refuses
    refusing = sorted([*in_use, *_outside(validated, parameters.ram_ranges())])
    for owner, start, size in state.book.runs():
        if owner is Owner.NOBODY:
            continue
        for domain in (Domain.SER, Domain.ENC, Domain.UNT):
            permissions = state.rows.permissions(owner, domain)
            if permissions:
                for gpa, end in _gaps(start, start + size, refusing):
                    yield from grant_range(cpu, gpa, end - gpa, domain.vmpl, permissions)


def _gaps(gpa: int, end: int, taken: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """The parts of [gpa, end) outside of sorted (start, end) ranges."""
    for start, stop in taken:
        if stop <= gpa or start >= end:
            continue
        if start > gpa:
            yield gpa, start
        gpa = max(gpa, stop)
    if gpa < end:
        yield gpa, end


def _outside(ranges: Iterable[tuple[int, int]], ram: Iterable[Range]) -> list[tuple[int, int]]:
    """The parts of RAM that lie in none of the ranges."""
    taken = sorted(ranges)
    return [gap for item in ram for gap in _gaps(item.gpa, item.end, taken)]


def check_cpuid(cpu: HostedCpu, parameters: MonitorParameters) -> None:
    """The launch digest says that there is a CPUID page, not what is on it: the host could have chosen that.

    With other values it could have the kernel do without a feature that protects it, or use one that is not there.
    """
    page = cpu.view.read(parameters.cpuid_gpa, PAGE_SIZE)
    if hashlib.sha256(page).digest() != bytes(parameters.cpuid_digest):
        raise MonitorError(
            MonitorReason.CPUID_CHANGED, "the CPUID page is not the one that the image was measured with"
        )


def share_memory(cpu: HostedCpu, parameters: MonitorParameters) -> Generator[None, None, None]:
    """Give back the pages that the host must reach: a GHCB for each VCPU, guest messages, the channel."""
    shared = parameters.shared
    for gpa, size in ((parameters.ghcb_gpa, parameters.vcpus * PAGE_SIZE), (shared.gpa, shared.size)):
        for page in range(gpa, gpa + size, PAGE_SIZE):
            yield from _share_page(cpu, page)


def _share_page(cpu: HostedCpu, gpa: int) -> Generator[None, None, None]:
    cpu.view.zero(gpa, PAGE_SIZE)
    code, unchanged = yield from retry(cpu, lambda: cpu.view.pvalidate(gpa, validate=False))
    if code != RmpResult.SUCCESS or unchanged:
        raise MonitorError(MonitorReason.MEMORY_NOT_VALIDATED, f"the page {gpa:#x} cannot be given back: {code.name}")
    yield from ghcb.share_page(cpu, gpa)


def own_ghcb(cpu: HostedCpu, parameters: MonitorParameters, apic_id: int) -> Generator[None, None, ghcb.Ghcb]:
    """Register this VCPU's GHCB."""
    gpa = parameters.ghcb_gpa + apic_id * PAGE_SIZE
    yield from ghcb.register_ghcb(cpu, gpa)
    return ghcb.Ghcb(cpu, gpa)


def prepare_kernel(cpu: HostedCpu, state: MonitorState) -> Generator[None, None, None]:
    """The kernel's secrets and CPUID pages, its CAA and its first VMSA."""
    view, parameters = cpu.view, state.parameters
    view.write(parameters.kernel_secrets_gpa, _kernel_secrets(view.read(parameters.secrets_gpa, PAGE_SIZE), parameters))
    view.write(parameters.kernel_cpuid_gpa, view.read(parameters.cpuid_gpa, PAGE_SIZE))
    view.zero(parameters.kernel_caa_gpa, PAGE_SIZE)

    template = view.read(parameters.template_gpa, PAGE_SIZE)
    vmsa = Vmsa.from_buffer_copy(template)
    if vmsa.vmpl != KERNEL_VMPL or not vmsa.efer & Efer.SVME or not vmsa.sev_features & SevFeatures.SNP:
        raise MonitorError(MonitorReason.BAD_KERNEL_VMSA, "the image's VMSA for the kernel is not one of VMPL 3")
    permissions = state.rows.permissions(Owner.BOOT_VMSA, Domain.UNT)
    yield from _make_vmsa(cpu, parameters.kernel_vmsa_gpa, template, KERNEL_VMPL, permissions)
    state.sev_features = int(vmsa.sev_features)
    state.book.move(parameters.kernel_vmsa_gpa, PAGE_SIZE, Owner.BOOT_VMSA)
    state.register_kernel(0, parameters.kernel_vmsa_gpa, parameters.kernel_caa_gpa)


def _kernel_secrets(page: bytes, parameters: MonitorParameters) -> bytes:
    secrets = SecretsPage.from_buffer_copy(page)
    for vmpl in range(KERNEL_VMPL):
        # With a more privileged level's key the kernel could ask for reports in the monitor's name.
        secrets.vmpck[vmpl][:] = [0] * KEY_BYTES
    monitor, services = parameters.monitor, parameters.services
    # One range, as the specification has it: what the kernel must leave alone.
    end = services.end if services.size and services.gpa == monitor.end else monitor.end
    secrets.svsm_base, secrets.svsm_size = monitor.gpa, end - monitor.gpa
    secrets.svsm_caa = parameters.kernel_caa_gpa
    secrets.svsm_max_version = SVSM_MAX_VERSION
    secrets.svsm_guest_vmpl = KERNEL_VMPL
    return bytes(secrets)


def make_monitor_vmsa(cpu: HostedCpu, parameters: MonitorParameters, index: int) -> Generator[None, None, int]:
    """A VMSA for the monitor on another VCPU: a copy of its own that starts at the header; returns its GPA."""
    own = Vmsa.from_buffer_copy(cpu.view.read(cpu.vmsa_gpa, PAGE_SIZE))
    own.rip = parameters.header_gpa
    own.rdi = index
    own.guest_exit_code = 0
    gpa = parameters.monitor_vmsas_gpa + (index - 1) * PAGE_SIZE
    yield from _make_vmsa(cpu, gpa, bytes(own), SERVICE_VMPL, Permission.NONE)
    return gpa


def make_service_vmsa(cpu: HostedCpu, parameters: MonitorParameters, index: int) -> Generator[None, None, int]:
    """A VMSA for the services on a VCPU: of VMPL 1, starting at their header; returns its GPA."""
    vmsa = Vmsa.from_buffer_copy(cpu.view.read(cpu.vmsa_gpa, PAGE_SIZE))
    vmsa.vmpl = SERVICE_VMPL
    vmsa.rip = parameters.service_code.gpa
    vmsa.rdi = index
    vmsa.guest_exit_code = 0
    gpa = parameters.service_vmsas_gpa + index * PAGE_SIZE
    yield from _make_vmsa(cpu, gpa, bytes(vmsa), SERVICE_VMPL, Permission.NONE)
    return gpa


def _make_vmsa(
    cpu: HostedCpu, gpa: int, content: bytes, vmpl: int, permissions: Permission
) -> Generator[None, None, None]:
    """Revoke, fill, seal: nobody below VMPL 0 can reach the registers of a context between the check and the seal."""
    yield from adjust_page(cpu, gpa, vmpl, Permission.NONE)
    cpu.view.write(gpa, content.ljust(PAGE_SIZE, b"\0"))
    yield from adjust_page(cpu, gpa, vmpl, permissions, vmsa=True)
