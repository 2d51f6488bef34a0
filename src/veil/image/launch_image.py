# SPDX-License-Identifier: GPL-2.0-or-later
"""The launch image: every page that the secure processor loads and measures, in order (docs/architecture.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from veil.formats.domains import KERNEL_VMPL, MONITOR_VMPL
from veil.formats.launch_digest import LaunchEntry, LaunchLog, PageType
from veil.formats.page_sizes import PAGE_SIZE
from veil.guest.elf import ElfKernel
from veil.guest.linux import layout as guest_layout
from veil.guest.linux.boot import BootRegisters, LinuxBoot, SegmentState, prepare_linux
from veil.guest.linux.boot import Region as GuestRegion
from veil.guest.linux.firmware import accept_memory
from veil.host import LaunchIdentityBlock, LaunchRegion, ProtectedRange, SharedPages
from veil.image.code_exceptions import check_exceptions
from veil.image.monitor_image import (
    KernelSide,
    kept_size,
    merge_ranges,
    monitor_regions,
    protected_ranges,
)
from veil.image.services_image import ServicesImage
from veil.services.parameters import KernelSegment
from veil.snp.cpuid import CpuidEntryValues
from veil.snp.layouts import CpuidFunction, CpuidPage, SevFeatures, Vmsa, VmsaSegment
from veil.snp.secure_processor import check_policy

__all__ = ["LaunchImage", "build_image", "cpuid_page"]


@dataclass(frozen=True)
class LaunchImage:
    """What the host launches."""

    regions: tuple[LaunchRegion, ...]
    protected: tuple[ProtectedRange, ...]
    """The monitor's region and the services'; none without a monitor. The host refuses what others ask about them."""
    command_line: str
    shared: tuple[SharedPages, ...] = ()
    """What the host puts into memory that is not the guest's; not measured."""
    policy: int | None = None
    identity: LaunchIdentityBlock | None = None
    """Of images that bring their own."""

    def digest(self) -> bytes:
        """The launch digest that a guest with this image reports (48 bytes), computed without launching."""
        return self.log().digest()

    def require_acceptable(self, digest: bytes) -> None:
        """Raises LaunchError for a guest policy of the image's own that the secure processor refuses, or an ID block.

        `digest`: the image's.
        """
        if self.policy is not None:
            check_policy(self.policy)
        if self.policy is not None and self.identity is not None:
            # Here, because few images have one, and what checks signatures takes long to import.
            from veil.snp.id_block_checks import check_id_block

            check_id_block(
                self.identity.block,
                self.identity.authentication,
                measurement=digest,
                policy=self.policy,
                author_key_enabled=self.identity.author_key_enabled,
            )

    def log(self) -> LaunchLog:
        """Every page of it, by name."""
        return LaunchLog(
            tuple(
                LaunchEntry.of(
                    region.name,
                    region.gpa,
                    int(region.kind),
                    region.data.ljust(region.length, b"\0"),
                    measured_gpa=region.measured_gpa,
                )
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
    sev_features: int = SevFeatures.SNP,
) -> LaunchImage:
    """The image of a guest with `memory` bytes; without a monitor the kernel runs at VMPL 0.

    `owners` and `readers` are SHA-256 of the public keys of users whom the secure channel lets do more than attest
    (`veil.formats.roles`). `sev_features` are those of all VMSAs. Raises GuestImageError if services ask for what this
    kernel does not have.
    """
    if services is not None and monitor:
        check_exceptions(services, kernel)
    segments = [KernelSegment(item.virtual, item.address, len(item.data)) for item in kernel.segments if item.data]
    kept = kept_size(services, segments) if monitor else 0
    linux = prepare_linux(kernel, initramfs, command_line, memory=memory, vcpus=vcpus, monitor_size=kept)
    table = cpuid_page(cpuid)
    regions = [_guest_region(region, table) for region in linux.regions]
    if linux.layout.monitor is None:
        loader = _accept_region(linux, regions)
        regions.append(loader)
        vmsa = _linux_vmsa(replace(linux.registers, rip=loader.gpa), MONITOR_VMPL, sev_features)
        regions.append(LaunchRegion(guest_layout.CAA, PageType.VMSA, vmsa, name="VMSA"))
        return LaunchImage(tuple(regions), (), command_line)
    side = KernelSide(
        template=_linux_vmsa(linux.registers, KERNEL_VMPL, sev_features),
        ram=[(piece.start, piece.size) for piece in linux.layout.ram],
        secrets=linux.secrets,
        cpuid=linux.cpuid,
        caa=linux.caa,
        launched=[(region.gpa, region.length) for region in regions],
        segments=segments,
        sev_features=sev_features,
    )
    base = linux.layout.monitor.start
    regions += monitor_regions(side, base, vcpus, table, owners, readers, services)
    return LaunchImage(tuple(regions), protected_ranges(base, services, segments), command_line)


def _accept_region(linux: LinuxBoot, regions: Sequence[LaunchRegion]) -> LaunchRegion:
    """The kernel expects all memory validated; without a monitor a few instructions before it see to that."""
    own = guest_layout.CAA + PAGE_SIZE
    taken = merge_ranges([(region.gpa, region.length) for region in regions] + [(guest_layout.CAA, 2 * PAGE_SIZE)])
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


def cpuid_page(entries: Sequence[CpuidEntryValues]) -> bytes:
    """The page that the secure processor checks, and hands to the guest."""
    page = CpuidPage(count=len(entries))
    for at, item in enumerate(entries):
        page.functions[at] = CpuidFunction(
            eax_in=item.leaf, ecx_in=item.subleaf, xcr0_in=item.xcr0, eax=item.eax, ebx=item.ebx, ecx=item.ecx,
            edx=item.edx,
        )  # fmt: skip
    return bytes(page)


def _segment(state: SegmentState) -> VmsaSegment:
    return VmsaSegment(state.selector, state.attributes, state.limit, state.base)


def _linux_vmsa(registers: BootRegisters, vmpl: int, sev_features: int) -> bytes:
    vmsa = Vmsa(vmpl=vmpl, sev_features=sev_features)
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
