# SPDX-License-Identifier: GPL-2.0-or-later
"""From the measured image to a kernel that can start at VMPL 3 (docs/architecture.md, "Boot")."""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterable

from veil.monitor.errors import MonitorError, Reason
from veil.monitor.memory import GUEST_VMPL, PAGE, SERVICE_VMPL, grant_range, validate_range
from veil.monitor.pages import Owner, PageBook
from veil.monitor.parameters import MonitorParameters
from veil.snp.hosted import HostedCpu
from veil.snp.layouts import Vmsa
from veil.snp.rmp import Permission, RmpResult

__all__ = ["make_monitor_vmsa", "make_page_book", "prepare_guest", "take_memory"]

_SVME = 1 << 12
_SNP_ACTIVE = 1

# Secrets page (56860, table 73, and 58019, table 3): VMPCK0 to VMPCK3 of 32 bytes each, the SVSM's fields.
_VMPCK = 0x20
_VMPCK_BYTES = 32
_SVSM_FIELDS = 0x140
_SVSM_MAX_VERSION = 1


def make_page_book(parameters: MonitorParameters) -> PageBook:
    """Who owns what when the kernel starts."""
    ram = parameters.ram_ranges()
    book = PageBook(max(item.gpa + item.size for item in ram) // PAGE)
    for item in ram:
        book.claim(item.gpa, item.size, Owner.GUEST)
    book.claim(parameters.monitor.gpa, parameters.monitor.size, Owner.MONITOR)
    if parameters.services.size:
        book.claim(parameters.services.gpa, parameters.services.size, Owner.SERVICE)
    for gpa in (parameters.secrets_gpa, parameters.cpuid_gpa):
        book.claim(gpa, PAGE, Owner.MONITOR)
    book.claim(parameters.guest_vmsa_gpa, PAGE, Owner.VMSA)
    return book


def take_memory(cpu: HostedCpu, parameters: MonitorParameters, book: PageBook) -> Generator[None, None, None]:
    """Validate what the launch did not, and give each level what it is due; all else stays VMPL 0's alone."""
    launched = sorted((item.gpa, item.gpa + item.size) for item in parameters.launched_ranges())
    for item in parameters.ram_ranges():
        for gpa, end in _gaps(item.gpa, item.gpa + item.size, launched):
            yield from validate_range(cpu, gpa, end - gpa)
    kept = sorted((gpa, gpa + size) for gpa, size in book.protected_ranges())
    for item in parameters.ram_ranges():
        for gpa, end in _gaps(item.gpa, item.gpa + item.size, kept):
            yield from grant_range(cpu, gpa, end - gpa, GUEST_VMPL, Permission.ALL)
    services = parameters.services
    if services.size:
        yield from grant_range(cpu, services.gpa, services.size, SERVICE_VMPL, Permission.RW)


def _gaps(gpa: int, end: int, taken: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """The parts of [gpa, end) outside of sorted ranges."""
    for start, stop in taken:
        if stop <= gpa or start >= end:
            continue
        if start > gpa:
            yield gpa, start
        gpa = max(gpa, stop)
    if gpa < end:
        yield gpa, end


def prepare_guest(cpu: HostedCpu, parameters: MonitorParameters) -> int:
    """The kernel's secrets and CPUID pages, its CAA and its first VMSA; returns its SEV features."""
    view = cpu.view
    secrets = bytearray(view.read(parameters.secrets_gpa, PAGE))
    for vmpl in range(GUEST_VMPL):
        # With a more privileged level's key the kernel could ask for reports in the monitor's name.
        start = _VMPCK + vmpl * _VMPCK_BYTES
        secrets[start : start + _VMPCK_BYTES] = bytes(_VMPCK_BYTES)
    struct.pack_into(
        "<QQQIB", secrets, _SVSM_FIELDS, parameters.monitor.gpa, parameters.monitor.size, parameters.guest_caa_gpa,
        _SVSM_MAX_VERSION, GUEST_VMPL,
    )  # fmt: skip
    view.write(parameters.guest_secrets_gpa, secrets)
    view.write(parameters.guest_cpuid_gpa, view.read(parameters.cpuid_gpa, PAGE))
    view.zero(parameters.guest_caa_gpa, PAGE)

    template = view.read(parameters.template_gpa, PAGE)
    vmsa = Vmsa.from_buffer_copy(template)
    if vmsa.vmpl != GUEST_VMPL or not vmsa.efer & _SVME or not vmsa.sev_features & _SNP_ACTIVE:
        raise MonitorError(Reason.BAD_KERNEL_VMSA, "the image's VMSA for the kernel is not one of VMPL 3")
    _make_vmsa(cpu, parameters.guest_vmsa_gpa, template, GUEST_VMPL, Permission.R)
    return int(vmsa.sev_features)


def make_monitor_vmsa(cpu: HostedCpu, parameters: MonitorParameters, index: int) -> int:
    """A VMSA for the monitor on another VCPU: a copy of its own that starts at the header; returns its GPA."""
    own = Vmsa.from_buffer_copy(cpu.view.read(cpu.vmsa_gpa, PAGE))
    own.rip = parameters.header_gpa
    own.rdi = index
    gpa = parameters.monitor_vmsas_gpa + (index - 1) * PAGE
    _make_vmsa(cpu, gpa, bytes(own), SERVICE_VMPL, Permission.NONE)
    return gpa


def _make_vmsa(cpu: HostedCpu, gpa: int, content: bytes, vmpl: int, permissions: Permission) -> None:
    cpu.view.zero(gpa, PAGE)
    cpu.view.write(gpa, content)
    code = cpu.view.rmpadjust(gpa, vmpl=vmpl, permissions=permissions, vmsa=True)
    if code != RmpResult.SUCCESS:
        raise MonitorError(Reason.BAD_KERNEL_VMSA, f"the page {gpa:#x} cannot become a VMSA: {code.name}")
