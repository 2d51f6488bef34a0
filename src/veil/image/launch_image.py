# SPDX-License-Identifier: GPL-2.0-or-later
"""The launch image: every page that the secure processor loads and measures, in order (docs/architecture.md)."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from veil.formats.launch_digest import LaunchEntry, LaunchLog, PageType
from veil.formats.page_sizes import PAGE_SIZE
from veil.guest.elf import ElfKernel
from veil.guest.linux import layout as guest_layout
from veil.guest.linux.boot import BootRegisters, LinuxBoot, SegmentState, prepare_linux
from veil.guest.linux.boot import Region as GuestRegion
from veil.guest.linux.firmware import accept_memory
from veil.host import LaunchRegion, ProtectedRange
from veil.image.services_image import BLOCKS, CODE, MAILBOX, MAILBOX_SIZE, ServicesImage, service_regions
from veil.monitor import MonitorParameters
from veil.services.parameters import KernelSegment
from veil.snp.cpuid import CpuidEntryValues
from veil.snp.hosted import hosted_header, pack_sources
from veil.snp.layouts import CpuidFunction, CpuidPage, Efer, SevFeatures, Vmsa, VmsaSegment

__all__ = ["LaunchImage", "build_image", "cpuid_page", "hosted_programs"]

_MIB = 1 << 20
_MONITOR_SIZE = 2 * _MIB

_ENTRY = "veil.monitor:VeilMon"
_PACKAGES = ("veil.formats", "veil.monitor")

# Offsets in the monitor's region.
_HEADER, _PARAMETERS, _BOOT_VMSA, _TEMPLATE, _SECRETS, _CPUID, _KERNEL_VMSA = (
    number * PAGE_SIZE for number in range(7)
)
_VMSAS, _SERVICE_VMSAS, _GHCBS, _SHARED, _ARCHIVE = 0x10000, 0x18000, 0x20000, 0x30000, 0x60000
_SHARED_SIZE = _ARCHIVE - _SHARED


def hosted_programs(services: ServicesImage | None) -> dict[str, tuple[str, ...]]:
    """Entry -> packages of the programs in an image: what may be resumed of a snapshot (`Machine.restore`)."""
    return {_ENTRY: _PACKAGES} | ({services.entry: services.packages} if services is not None else {})


@dataclass(frozen=True)
class LaunchImage:
    """What the host launches."""

    regions: tuple[LaunchRegion, ...]
    protected: tuple[ProtectedRange, ...]
    """The monitor's region and the services'; none without a monitor. The host refuses what others ask about them."""
    command_line: str

    def digest(self) -> bytes:
        """The launch digest that a guest with this image reports (48 bytes), computed without launching."""
        return self.log().digest()

    def log(self) -> LaunchLog:
        """Every page of it, by name."""
        return LaunchLog(
            tuple(
                LaunchEntry.of(region.name, region.gpa, int(region.kind), region.data.ljust(region.length, b"\0"))
                for region in self.regions
            )
        )


def build_image(
    kernel: ElfKernel,
    initramfs: bytes,
    command_line: str,
    *,
    memory: int,
    vcpus: int,
    monitor: bool,
    cpuid: Sequence[CpuidEntryValues],
    owners: Sequence[bytes] = (),
    readers: Sequence[bytes] = (),
    services: ServicesImage | None = None,
) -> LaunchImage:
    """The image of a guest with `memory` bytes; without a monitor the kernel runs at VMPL 0.

    `owners` and `readers` are SHA-256 of the public keys of users whom the secure channel lets do more than attest
    (`veil.formats.roles`).
    """
    segments = [KernelSegment(item.virtual, item.address, len(item.data)) for item in kernel.segments if item.data]
    services_size = services.region_size(segments) if services is not None else 0
    kept = _MONITOR_SIZE + services_size if monitor else 0
    linux = prepare_linux(kernel, initramfs, command_line, memory=memory, vcpus=vcpus, monitor_size=kept)
    table = cpuid_page(cpuid)
    regions = [_guest_region(region, table) for region in linux.regions]
    if linux.layout.monitor is None:
        loader = _accept_region(linux, regions)
        regions.append(loader)
        vmsa = _linux_vmsa(replace(linux.registers, rip=loader.gpa), vmpl=0)
        regions.append(LaunchRegion(guest_layout.CAA, PageType.VMSA, vmsa, name="VMSA"))
        return LaunchImage(tuple(regions), (), command_line)
    base = linux.layout.monitor.start
    regions += _monitor_regions(linux, base, vcpus, table, regions, owners, readers, services, segments)
    protected = [ProtectedRange(base, _MONITOR_SIZE, vmpl=0)]
    if services is not None:
        protected.append(ProtectedRange(base + _MONITOR_SIZE, kept - _MONITOR_SIZE, vmpl=1))
    return LaunchImage(tuple(regions), tuple(protected), command_line)


def _accept_region(linux: LinuxBoot, regions: Sequence[LaunchRegion]) -> LaunchRegion:
    """The kernel expects all memory validated; without a monitor a few instructions before it see to that."""
    own = guest_layout.CAA + PAGE_SIZE
    taken = _merge([(region.gpa, region.length) for region in regions] + [(guest_layout.CAA, 2 * PAGE_SIZE)])
    free: list[tuple[int, int]] = []
    for piece in linux.layout.ram:
        at = piece.start
        for gpa, size in taken:
            if piece.start <= gpa < piece.end:
                if gpa > at:
                    free.append((at, gpa))
                at = gpa + size
        if at < piece.end:
            free.append((at, piece.end))
    return LaunchRegion(own, PageType.NORMAL, accept_memory(free, linux.registers.rip), name="memory stub")


def _guest_region(region: GuestRegion, table: bytes) -> LaunchRegion:
    if region.kind == PageType.CPUID:
        return LaunchRegion(region.gpa, region.kind, table, name=region.name)
    if region.kind == PageType.NORMAL:
        return LaunchRegion(region.gpa, region.kind, region.data, name=region.name)
    return LaunchRegion(region.gpa, region.kind, size=len(region.data), name=region.name)


def _monitor_regions(
    linux: LinuxBoot,
    base: int,
    vcpus: int,
    table: bytes,
    guest: Sequence[LaunchRegion],
    owners: Sequence[bytes],
    readers: Sequence[bytes],
    services: ServicesImage | None,
    segments: Sequence[KernelSegment],
) -> list[LaunchRegion]:
    archive = pack_sources(_PACKAGES)
    size = ctypes.sizeof(MonitorParameters)
    pieces: list[LaunchRegion] = [
        LaunchRegion(
            base + _HEADER,
            PageType.NORMAL,
            hosted_header(_ENTRY, archive=(base + _ARCHIVE, len(archive)), parameters=(base + _PARAMETERS, size)),
            name="VeilMon",
        ),
        LaunchRegion(base + _TEMPLATE, PageType.NORMAL, _linux_vmsa(linux.registers, vmpl=3), name="kernel VMSA"),
        LaunchRegion(base + _SECRETS, PageType.SECRETS, size=PAGE_SIZE, name="secrets"),
        LaunchRegion(base + _CPUID, PageType.CPUID, table, name="CPUID page"),
        LaunchRegion(base + _ARCHIVE, PageType.NORMAL, archive, name="VeilMon"),
    ]
    own, code = base + _MONITOR_SIZE, (0, 0)
    if services is not None:
        added = service_regions(services, own, vcpus, segments)
        pieces += added
        code = (own + CODE, added[-1].gpa + added[-1].length - (own + CODE))
    boot_vmsa = LaunchRegion(base + _BOOT_VMSA, PageType.VMSA, _monitor_vmsa(base + _HEADER), name="VMSA")
    launched = _merge(
        [(region.gpa, region.length) for region in (*guest, *pieces, boot_vmsa)] + [(base + _PARAMETERS, PAGE_SIZE)]
    )
    parameters = MonitorParameters.make(
        vcpus=vcpus,
        ram=[(piece.start, piece.size) for piece in linux.layout.ram],
        launched=launched,
        monitor=(base, _MONITOR_SIZE),
        services=(own, services.region_size(segments)) if services is not None else (0, 0),
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
        kernel_secrets_gpa=linux.secrets,
        kernel_cpuid_gpa=linux.cpuid,
        kernel_caa_gpa=linux.caa,
    )
    pieces.append(LaunchRegion(base + _PARAMETERS, PageType.NORMAL, bytes(parameters), name="parameters"))
    return [*sorted(pieces, key=lambda region: region.gpa), boot_vmsa]


def _merge(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for gpa, size in sorted(ranges):
        if merged and merged[-1][0] + merged[-1][1] == gpa:
            merged[-1] = (merged[-1][0], merged[-1][1] + size)
        else:
            merged.append((gpa, size))
    return merged


def cpuid_page(entries: Sequence[CpuidEntryValues]) -> bytes:
    """The page that the secure processor checks, and hands to the guest."""
    page = CpuidPage(count=len(entries))
    for at, item in enumerate(entries):
        page.functions[at] = CpuidFunction(
            eax_in=item.leaf, ecx_in=item.subleaf, eax=item.eax, ebx=item.ebx, ecx=item.ecx, edx=item.edx
        )
    return bytes(page)


def _segment(state: SegmentState) -> VmsaSegment:
    return VmsaSegment(state.selector, state.attributes, state.limit, state.base)


def _linux_vmsa(registers: BootRegisters, *, vmpl: int) -> bytes:
    vmsa = Vmsa(vmpl=vmpl, sev_features=SevFeatures.SNP)
    vmsa.cs = _segment(registers.cs)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(vmsa, name, _segment(registers.data))
    for name in ("gdtr", "idtr", "ldtr", "tr"):
        setattr(vmsa, name, _segment(getattr(registers, name)))
    for name in (
        "rip", "rsi", "rsp", "cr3", "cr0", "cr4", "efer", "rflags", "dr6", "dr7", "g_pat", "xcr0", "mxcsr",
    ):  # fmt: skip
        setattr(vmsa, name, getattr(registers, name))
    vmsa.x87_fcw, vmsa.x87_ftw = registers.fcw, registers.ftw
    return bytes(vmsa).ljust(PAGE_SIZE, b"\0")


def _monitor_vmsa(header_gpa: int) -> bytes:
    """The monitor runs as Python: all that its VMSA says is where it starts, and that it is a context of VMPL 0."""
    vmsa = Vmsa(
        vmpl=0, sev_features=SevFeatures.SNP, rip=header_gpa, efer=Efer.SVME, rflags=2, cr0=0x10, dr6=0xFFFF0FF0,
        dr7=0x400, g_pat=0x0007040600070406, xcr0=1, mxcsr=0x1F80,
    )  # fmt: skip
    return bytes(vmsa).ljust(PAGE_SIZE, b"\0")
