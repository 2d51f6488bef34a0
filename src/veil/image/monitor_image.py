# SPDX-License-Identifier: GPL-2.0-or-later
"""What of a launch image is VeilMon's and the services', whatever runs below them."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from veil.formats.domains import MONITOR_VMPL, SERVICE_VMPL
from veil.formats.launch_digest import PageType
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.registers import RESET_DR6, RESET_DR7, RESET_MXCSR, RESET_PAT, RESET_XCR0, Cr0, Efer, Rflags
from veil.host import LaunchRegion, ProtectedRange
from veil.image.hosted_programs import MONITOR_ENTRY, MONITOR_PACKAGES
from veil.image.services_image import BLOCKS, CODE, MAILBOX, MAILBOX_SIZE, ServicesImage, service_regions
from veil.monitor import MonitorParameters, Option
from veil.services.parameters import KernelSegment
from veil.snp.hosted import hosted_header, pack_sources
from veil.snp.layouts import SevFeatures, Vmsa

__all__ = [
    "MONITOR_SIZE",
    "KernelSide",
    "kept_size",
    "merge_ranges",
    "monitor_regions",
    "protected_ranges",
]

MONITOR_SIZE = 2 << 20

# Offsets in the monitor's region.
_HEADER, _PARAMETERS, _BOOT_VMSA, _TEMPLATE, _SECRETS, _CPUID, _KERNEL_VMSA = (
    number * PAGE_SIZE for number in range(7)
)
_VMSAS, _SERVICE_VMSAS, _GHCBS, _SHARED, _ARCHIVE = 0x10000, 0x18000, 0x20000, 0x30000, 0x60000
_SHARED_SIZE = _ARCHIVE - _SHARED


@dataclass(frozen=True)
class KernelSide:
    """What VeilMon must know of what runs at VMPL 3. Addresses are guest-physical, ranges (start, length)."""

    template: bytes
    """Its first VMSA."""
    ram: Sequence[tuple[int, int]]
    """All of the guest's, VeilMon's included."""
    secrets: int
    cpuid: int
    caa: int
    """Pages of its own, which VeilMon fills."""
    launched: Sequence[tuple[int, int]]
    """What of its memory is in the image."""
    segments: Sequence[KernelSegment] = ()
    """Of a kernel that is in the image as it will lie in memory."""
    validates: bool = False
    """It validates its memory itself, as firmware does."""
    sev_features: int = SevFeatures.SNP
    """Of VeilMon's VMSAs, as of the template."""


def kept_size(services: ServicesImage | None, segments: Sequence[KernelSegment] = ()) -> int:
    """Bytes of memory that the kernel does not get: VeilMon's region, and the services' behind it."""
    return MONITOR_SIZE + (services.region_size(segments) if services is not None else 0)


def protected_ranges(
    base: int, services: ServicesImage | None, segments: Sequence[KernelSegment] = ()
) -> tuple[ProtectedRange, ...]:
    """The same as the host is told of them."""
    monitor = ProtectedRange(base, MONITOR_SIZE, vmpl=MONITOR_VMPL)
    if services is None:
        return (monitor,)
    return (monitor, ProtectedRange(base + MONITOR_SIZE, services.region_size(segments), vmpl=SERVICE_VMPL))


def monitor_regions(
    kernel: KernelSide,
    base: int,
    vcpus: int,
    table: bytes,
    owners: Sequence[bytes],
    readers: Sequence[bytes],
    services: ServicesImage | None,
) -> list[LaunchRegion]:
    """VeilMon's pieces and the services' from `base` on, sorted by address; its boot VMSA is last.

    `table` is the CPUID page. `owners` and `readers`: as of `build_image`.
    """
    archive = pack_sources(MONITOR_PACKAGES)
    size = ctypes.sizeof(MonitorParameters)
    pieces: list[LaunchRegion] = [
        LaunchRegion(
            base + _HEADER,
            PageType.NORMAL,
            hosted_header(
                MONITOR_ENTRY, archive=(base + _ARCHIVE, len(archive)), parameters=(base + _PARAMETERS, size)
            ),
            name="VeilMon",
        ),
        LaunchRegion(base + _TEMPLATE, PageType.NORMAL, kernel.template, name="kernel VMSA"),
        LaunchRegion(base + _SECRETS, PageType.SECRETS, size=PAGE_SIZE, name="secrets"),
        LaunchRegion(base + _CPUID, PageType.CPUID, table, name="CPUID page"),
        LaunchRegion(base + _ARCHIVE, PageType.NORMAL, archive, name="VeilMon"),
    ]
    own, code = base + MONITOR_SIZE, (0, 0)
    if services is not None:
        added = service_regions(services, own, vcpus, kernel.segments)
        pieces += added
        code = (own + CODE, added[-1].gpa + added[-1].length - (own + CODE))
    boot_vmsa = LaunchRegion(
        base + _BOOT_VMSA, PageType.VMSA, _monitor_vmsa(base + _HEADER, kernel.sev_features), name="VMSA"
    )
    own_pages = [(region.gpa, region.length) for region in (*pieces, boot_vmsa)]
    launched = merge_ranges([*kernel.launched, *own_pages, (base + _PARAMETERS, PAGE_SIZE)])
    parameters = MonitorParameters.make(
        vcpus=vcpus,
        ram=kernel.ram,
        launched=launched,
        monitor=(base, MONITOR_SIZE),
        services=(own, services.region_size(kernel.segments)) if services is not None else (0, 0),
        service_code=code,
        service_vmsas_gpa=base + _SERVICE_VMSAS,
        mailbox_gpa=own + MAILBOX,
        mailbox_size=MAILBOX_SIZE,
        blocks_gpa=own + BLOCKS,
        header_gpa=base + _HEADER,
        secrets_gpa=base + _SECRETS,
        cpuid_gpa=base + _CPUID,
        ghcb_gpa=base + _GHCBS,
        shared=(base + _SHARED, _SHARED_SIZE),
        cpuid_digest=hashlib.sha256(table).digest(),
        owners=owners,
        readers=readers,
        monitor_vmsas_gpa=base + _VMSAS,
        template_gpa=base + _TEMPLATE,
        kernel_vmsa_gpa=base + _KERNEL_VMSA,
        kernel_secrets_gpa=kernel.secrets,
        kernel_cpuid_gpa=kernel.cpuid,
        kernel_caa_gpa=kernel.caa,
        options=Option.KERNEL_VALIDATES if kernel.validates else Option.NONE,
    )
    pieces.append(LaunchRegion(base + _PARAMETERS, PageType.NORMAL, bytes(parameters), name="parameters"))
    return [*sorted(pieces, key=lambda region: region.gpa), boot_vmsa]


def merge_ranges(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbours as one; (start, length) each."""
    merged: list[tuple[int, int]] = []
    for gpa, size in sorted(ranges):
        if merged and merged[-1][0] + merged[-1][1] == gpa:
            merged[-1] = (merged[-1][0], merged[-1][1] + size)
        else:
            merged.append((gpa, size))
    return merged


def _monitor_vmsa(header_gpa: int, sev_features: int) -> bytes:
    """The monitor runs as Python: all that its VMSA says is where it starts, and that it is a context of VMPL 0."""
    vmsa = Vmsa(
        vmpl=MONITOR_VMPL, sev_features=sev_features, rip=header_gpa, efer=Efer.SVME, rflags=Rflags.ONE,
        cr0=Cr0.ET, dr6=RESET_DR6, dr7=RESET_DR7, g_pat=RESET_PAT, xcr0=RESET_XCR0, mxcsr=RESET_MXCSR,
    )  # fmt: skip
    return bytes(vmsa).ljust(PAGE_SIZE, b"\0")
