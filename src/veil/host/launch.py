# SPDX-License-Identifier: GPL-2.0-or-later
"""Launching a guest: RAM becomes the guest's, and the secure processor takes in and measures the image.

56860, section 8.12 onwards (SNP_LAUNCH_START, SNP_LAUNCH_UPDATE, SNP_LAUNCH_FINISH).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from veil.formats.attestation_report import GuestPolicy
from veil.formats.domains import VMPLS
from veil.formats.launch_digest import VMSA_GPA, PageType
from veil.formats.page_sizes import PAGE_SIZE, PAGE_SIZE_2M
from veil.host.errors import LaunchRefused
from veil.snp.errors import SnpError
from veil.snp.layouts import SevFeatures, Vmsa, unsupported_features
from veil.snp.rmp import PageSize, RmpResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from veil.host.interfaces import HostMemory, SecureProcessor

__all__ = [
    "DEFAULT_POLICY",
    "LaunchIdentityBlock",
    "LaunchRegion",
    "SharedPages",
    "assign_ram",
    "has_restricted_injection",
    "load_image",
]

DEFAULT_POLICY = int(GuestPolicy.RESERVED_ONE | GuestPolicy.SMT)


@dataclass(frozen=True, slots=True)
class LaunchRegion:
    """A piece of the image. The regions are loaded, and so measured, in the order of the list.

    `data` is padded with zeros to whole pages; ZERO and SECRETS regions give `size` instead. A VMSA region is one page
    and names the VCPU and VMPL that it is for. `permissions` are those of VMPL 1, 2 and 3.
    """

    gpa: int
    kind: PageType
    data: bytes = b""
    size: int = 0
    permissions: tuple[int, int, int] = (0, 0, 0)
    vcpu: int = 0
    vmpl: int = 0
    measured_gpa: int = VMSA_GPA
    """Of a VMSA."""
    large: bool = False
    """In pages of 2 MiB."""
    name: str = ""
    """For people."""

    @property
    def length(self) -> int:
        """In bytes, whole pages."""
        return _whole_pages(self.size, self.data)


@dataclass(frozen=True, slots=True)
class SharedPages:
    """Pages that stay the host's, with what it writes there before the guest begins."""

    gpa: int
    data: bytes = b""
    size: int = 0

    @property
    def length(self) -> int:
        """In bytes, whole pages."""
        return _whole_pages(self.size, self.data)


@dataclass(frozen=True, slots=True)
class LaunchIdentityBlock:
    """ID_BLOCK (96 bytes) and ID_AUTH (4096 bytes) of SNP_LAUNCH_FINISH, as the guest's owner signed them."""

    block: bytes
    authentication: bytes
    author_key_enabled: bool = False


def _whole_pages(size: int, data: bytes) -> int:
    return -(-max(size, len(data)) // PAGE_SIZE) * PAGE_SIZE


def _check(regions: Sequence[LaunchRegion | SharedPages], ram: Sequence[tuple[int, int]], vcpus: int) -> None:
    taken: list[tuple[int, int]] = []
    for region in regions:
        kind = region.kind.name if isinstance(region, LaunchRegion) else "shared"
        where = f"{kind} region at {region.gpa:#x}"
        end = region.gpa + region.length
        if region.gpa % PAGE_SIZE or region.gpa < 0 or not region.length:
            raise LaunchRefused(f"{where}: the address must be page aligned and the length positive")
        if not any(start <= region.gpa and end <= start + length for start, length in ram):
            raise LaunchRefused(f"{where}: {region.length:#x} bytes do not lie in guest memory; give the guest more")
        if isinstance(region, LaunchRegion) and region.large and (region.gpa | region.length) % PAGE_SIZE_2M:
            raise LaunchRefused(f"{where}: {region.length:#x} bytes are not whole pages of 2 MiB")
        if (
            isinstance(region, LaunchRegion)
            and region.kind == PageType.VMSA
            and (region.length != PAGE_SIZE or not 0 <= region.vcpu < vcpus or not 0 <= region.vmpl < VMPLS)
        ):
            raise LaunchRefused(f"{where}: a VMSA is one page for VCPU 0 to {vcpus - 1} and VMPL 0 to {VMPLS - 1}")
        if isinstance(region, LaunchRegion) and region.kind == PageType.VMSA:
            _check_features(where, region.data)
        taken.append((region.gpa, end))
    taken.sort()
    for (_, end), (start, _) in itertools.pairwise(taken):
        if start < end:
            raise LaunchRefused(f"two launch regions overlap at {start:#x}")


def _features(vmsa: bytes) -> int:
    at = Vmsa.sev_features.offset
    return int.from_bytes(vmsa[at : at + 8], "little")


def has_restricted_injection(region: LaunchRegion) -> bool:
    """Of a VMSA."""
    return bool(_features(region.data) & SevFeatures.RESTRICTED_INJECTION)


def _check_features(where: str, vmsa: bytes) -> None:
    """VMRUN would refuse it, without a word."""
    missing = unsupported_features(_features(vmsa))
    if missing:
        raise LaunchRefused(f"{where}: its SEV_FEATURES ask for what this processor does not have: {missing}")


def _rmpupdate(view: HostMemory, gpa: int, size: PageSize, count: int) -> None:
    code = view.rmpupdate(gpa, assigned=True, size=size, count=count)
    if code != RmpResult.SUCCESS:
        raise LaunchRefused(f"RMPUPDATE at {gpa:#x} failed: {RmpResult(code).name}; launch needs a fresh machine")


def assign_ram(view: HostMemory, ram: Iterable[tuple[int, int]], regions: Iterable[LaunchRegion | SharedPages]) -> None:
    """Give all RAM to the guest, in entries of 2 MiB where no launch page of 4 KiB lies."""
    small = {
        chunk
        for region in regions
        if not (isinstance(region, LaunchRegion) and region.large)
        for chunk in range(region.gpa & -PAGE_SIZE_2M, region.gpa + region.length, PAGE_SIZE_2M)
    }
    for start, length in ram:
        end = start + length
        gpa = start
        while gpa < end:
            # A run of chunks of the same kind is one call.
            first = gpa
            large = gpa % PAGE_SIZE_2M == 0 and gpa + PAGE_SIZE_2M <= end and gpa not in small
            gpa = min(end, (gpa & -PAGE_SIZE_2M) + PAGE_SIZE_2M)
            while gpa < end and large == (gpa + PAGE_SIZE_2M <= end and gpa not in small):
                gpa = min(end, gpa + PAGE_SIZE_2M)
            if large:
                _rmpupdate(view, first, PageSize.SIZE_2M, (gpa - first) // PAGE_SIZE_2M)
            else:
                _rmpupdate(view, first, PageSize.SIZE_4K, (gpa - first) // PAGE_SIZE)


def _give_back(view: HostMemory, pages: SharedPages) -> None:
    code = view.rmpupdate(pages.gpa, assigned=False, size=PageSize.SIZE_4K, count=pages.length // PAGE_SIZE)
    if code != RmpResult.SUCCESS:
        raise LaunchRefused(f"RMPUPDATE at {pages.gpa:#x} failed: {RmpResult(code).name}")
    for at in range(0, pages.length, PAGE_SIZE_2M):
        piece = pages.data[at : at + PAGE_SIZE_2M]
        view.write(pages.gpa + at, piece.ljust(min(PAGE_SIZE_2M, pages.length - at), b"\0"))


def _load_zeros(processor: SecureProcessor, region: LaunchRegion) -> None:
    """In pieces: without a monitor, a region of zeros may be all of the guest's RAM."""
    end = region.gpa + region.length
    for gpa in range(region.gpa, end, PAGE_SIZE_2M):
        size = min(PAGE_SIZE_2M, end - gpa)
        processor.launch_update(gpa, bytes(size), PageType.ZERO, vmpl_perms=region.permissions)


def load_image(
    view: HostMemory,
    processor: SecureProcessor,
    ram: Sequence[tuple[int, int]],
    regions: Sequence[LaunchRegion],
    *,
    vcpus: int,
    policy: int,
    host_data: bytes,
    identity: LaunchIdentityBlock | None = None,
    shared: Sequence[SharedPages] = (),
) -> None:
    """The whole launch, from RMPUPDATE to SNP_LAUNCH_FINISH."""
    everything: list[LaunchRegion | SharedPages] = [*regions, *shared]
    _check(everything, ram, vcpus)
    assign_ram(view, ram, everything)
    for pages in shared:
        _give_back(view, pages)
    try:
        processor.launch_start(policy)
        for region in regions:
            if region.kind == PageType.ZERO:
                _load_zeros(processor, region)
                continue
            data = region.data.ljust(region.length, b"\0")
            if region.kind == PageType.VMSA:
                processor.launch_update_vmsa(region.gpa, data, measured_gpa=region.measured_gpa)
            elif region.large:
                processor.launch_update(region.gpa, data, region.kind, vmpl_perms=region.permissions, large=True)
            else:
                processor.launch_update(region.gpa, data, region.kind, vmpl_perms=region.permissions)
        if identity is None:
            processor.launch_finish(host_data=host_data)
        else:
            processor.launch_finish(
                host_data=host_data,
                id_block=identity.block,
                id_auth=identity.authentication,
                author_key_enabled=identity.author_key_enabled,
            )
    except SnpError as error:
        raise LaunchRefused(f"the secure processor refused the launch: {error}") from error
