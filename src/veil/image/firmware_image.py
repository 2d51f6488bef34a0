# SPDX-License-Identifier: GPL-2.0-or-later
"""The launch image of a guest that starts with stock firmware, as QEMU launches it (target/i386/sev.c).

The firmware's file, which ends at 4 GiB; the sections that its metadata names, in their order; a VMSA for each VCPU.
`sev-snp-measure --mode snp` computes the same digest from the same files. Under VeilMon, its pieces take the place of
the VMSAs; it fills the firmware's secrets page, CPUID page and calling area.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from veil.formats.board import HIGH_MEMORY, LOW_MEMORY_END
from veil.formats.domains import KERNEL_VMPL
from veil.formats.launch_digest import PageType
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.registers import (
    INIT_FCW,
    RESET_DR6,
    RESET_DR7,
    RESET_MXCSR,
    RESET_PAT,
    RESET_XCR0,
    Cr0,
    Cr4,
    Efer,
    Rflags,
)
from veil.guest.errors import GuestImageError
from veil.guest.ovmf.kernel_hashes import hashes_page
from veil.guest.ovmf.metadata import Firmware, Section, SectionType
from veil.host import LaunchRegion
from veil.image.launch_image import LaunchImage, cpuid_page
from veil.image.monitor_image import KernelSide, kept_size, monitor_regions, protected_ranges
from veil.image.services_image import ServicesImage
from veil.snp.cpuid import PROCESSOR_SIGNATURE, CpuidEntryValues
from veil.snp.layouts import SevFeatures, Vmsa, VmsaSegment

__all__ = ["BootFiles", "MonitorBelow", "build_firmware_image", "firmware_memory", "monitor_base", "reset_vmsa"]

_RESET_VECTOR = 0xFFFFFFF0
_NAMES = {
    SectionType.SEC_MEMORY: "firmware memory",
    SectionType.SECRETS: "secrets",
    SectionType.CPUID: "CPUID page",
    SectionType.SVSM_CAA: "calling area",
    SectionType.KERNEL_HASHES: "kernel hashes",
}
_PAGE_TYPES = {SectionType.SECRETS: PageType.SECRETS, SectionType.CPUID: PageType.CPUID}


@dataclass(frozen=True)
class BootFiles:
    """What the host gives the firmware to boot, and the firmware compares with the hashes that are measured."""

    kernel: bytes = field(repr=False)
    initrd: bytes = field(repr=False)
    command_line: str

    @property
    def command_line_bytes(self) -> bytes:
        """As the firmware gets it."""
        return self.command_line.encode() + b"\0"


@dataclass(frozen=True)
class MonitorBelow:
    """VeilMon at VMPL 0, with the users that it knows, and the services."""

    owners: Sequence[bytes]
    readers: Sequence[bytes]
    services: ServicesImage | None


def firmware_memory(firmware: Firmware, vcpus: int, *, monitor: bool = False) -> int:
    """Bytes of RAM below 4 GiB: the file, and before it a page for each VCPU's VMSA, of which nobody tells the guest.

    On a real host these lie outside of the guest's memory; under VeilMon they are in its region.
    """
    return len(firmware.data) + (0 if monitor else vcpus * PAGE_SIZE)


def monitor_base(memory: int, services: ServicesImage | None) -> int:
    """Where the memory begins that VeilMon and the services keep: at the end of what lies below 3 GiB."""
    return min(memory, LOW_MEMORY_END) - kept_size(services)


def build_firmware_image(
    firmware: Firmware,
    files: BootFiles | None,
    *,
    ram: Sequence[tuple[int, int]],
    vcpus: int,
    cpuid: Sequence[CpuidEntryValues],
    monitor: MonitorBelow | None = None,
    sev_features: int = SevFeatures.SNP,
) -> LaunchImage:
    """The image; without `files` the firmware boots from a disk. `ram`: (GPA, length) of each piece there will be.

    Raises GuestImageError if the firmware's sections do not lie in it, or the firmware cannot do what is asked.
    """
    if vcpus > 1 and firmware.reset_address is None:
        raise GuestImageError("this firmware names no address where further processors start: give it one VCPU")
    if files is not None and firmware.hashes_address is None:
        # It would start any kernel that the host gives it.
        raise GuestImageError(
            "this firmware does not check the kernel that it is given (it has no section for hashes): take one that "
            "does (--firmware debian), or let it boot from a disk"
        )
    regions = [LaunchRegion(firmware.gpa, PageType.NORMAL, firmware.data, name="firmware")]
    table = cpuid_page(cpuid)
    for section in firmware.sections:
        if not any(start <= section.gpa and section.gpa + section.size <= start + size for start, size in ram):
            raise GuestImageError(
                f"the firmware wants {section.size:#x} bytes of memory at {section.gpa:#x}: give the guest more memory"
            )
        regions.append(_region(section, firmware, files, table, filled=monitor is not None))
    command_line = files.command_line if files is not None else ""
    if monitor is not None:
        return _under_monitor(
            firmware, monitor, regions, command_line, ram=ram, vcpus=vcpus, table=table, sev_features=sev_features
        )
    first_vmsa = HIGH_MEMORY - firmware_memory(firmware, vcpus)
    for vcpu in range(vcpus):
        start = firmware.reset_address if vcpu and firmware.reset_address is not None else _RESET_VECTOR
        vmsa = reset_vmsa(start, sev_features=sev_features)
        regions.append(LaunchRegion(first_vmsa + vcpu * PAGE_SIZE, PageType.VMSA, vmsa, vcpu=vcpu, name="VMSA"))
    return LaunchImage(tuple(regions), (), command_line)


def _under_monitor(
    firmware: Firmware,
    monitor: MonitorBelow,
    regions: Sequence[LaunchRegion],
    command_line: str,
    *,
    ram: Sequence[tuple[int, int]],
    vcpus: int,
    table: bytes,
    sev_features: int,
) -> LaunchImage:
    pages = [firmware.section(kind) for kind in (SectionType.SECRETS, SectionType.CPUID, SectionType.SVSM_CAA)]
    secrets, cpuid, caa = (page.gpa if page is not None else None for page in pages)
    if secrets is None or cpuid is None or caa is None:
        raise GuestImageError(
            "this firmware has no section for an SVSM's calling area, so it cannot run under VeilMon: --no-monitor"
        )
    if monitor.services is not None and monitor.services.keeps_kernel:
        raise GuestImageError(
            "code integrity knows the kernel from the measured image, and firmware unpacks it somewhere else:"
            " --kci off, or no --firmware"
        )
    side = KernelSide(
        template=reset_vmsa(_RESET_VECTOR, vmpl=KERNEL_VMPL, sev_features=sev_features),
        ram=ram,
        secrets=secrets,
        cpuid=cpuid,
        caa=caa,
        launched=[(region.gpa, region.length) for region in regions],
        validates=True,
        sev_features=sev_features,
    )
    base = monitor_base(ram[0][1], monitor.services)
    own = monitor_regions(side, base, vcpus, table, monitor.owners, monitor.readers, monitor.services)
    return LaunchImage((*regions, *own), protected_ranges(base, monitor.services), command_line)


def _region(
    section: Section, firmware: Firmware, files: BootFiles | None, table: bytes, *, filled: bool
) -> LaunchRegion:
    """`filled`: VeilMon puts there what the secure processor would."""
    name = _NAMES[section.kind]
    if filled and section.kind in (SectionType.SECRETS, SectionType.CPUID):
        return LaunchRegion(section.gpa, PageType.ZERO, size=section.size, name=name)
    if section.kind == SectionType.CPUID:
        return LaunchRegion(section.gpa, PageType.CPUID, table, name=name)
    if section.kind == SectionType.KERNEL_HASHES and files is not None and firmware.hashes_address is not None:
        page = hashes_page(firmware.hashes_address, files.kernel, files.initrd, files.command_line_bytes)
        return LaunchRegion(section.gpa, PageType.NORMAL, page, name=name)
    return LaunchRegion(section.gpa, _PAGE_TYPES.get(section.kind, PageType.ZERO), size=section.size, name=name)


def reset_vmsa(address: int, *, vmpl: int = 0, sev_features: int = SevFeatures.SNP) -> bytes:
    """A VCPU after its reset, as KVM and QEMU leave it (APM volume 2, 14.1.3), but that it starts at `address`."""
    vmsa = Vmsa(
        vmpl=vmpl,
        sev_features=sev_features,
        efer=Efer.SVME,
        cr0=Cr0.ET,
        cr4=Cr4.MCE,
        dr6=RESET_DR6,
        dr7=RESET_DR7,
        rflags=Rflags.ONE,
        rip=address & 0xFFFF,
        rdx=PROCESSOR_SIGNATURE,
        g_pat=RESET_PAT,
        xcr0=RESET_XCR0,
        mxcsr=RESET_MXCSR,
        x87_fcw=INIT_FCW,
    )
    vmsa.cs = VmsaSegment(0xF000, 0x9B, 0xFFFF, address & 0xFFFF0000)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(vmsa, name, VmsaSegment(0, 0x93, 0xFFFF, 0))
    vmsa.gdtr = vmsa.idtr = VmsaSegment(0, 0, 0xFFFF, 0)
    vmsa.ldtr = VmsaSegment(0, 0x82, 0xFFFF, 0)
    vmsa.tr = VmsaSegment(0, 0x8B, 0xFFFF, 0)
    return bytes(vmsa).ljust(PAGE_SIZE, b"\0")
