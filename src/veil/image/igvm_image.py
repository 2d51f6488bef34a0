# SPDX-License-Identifier: GPL-2.0-or-later
"""The launch image of a guest that is all in an IGVM file: its pages, its contexts, and what the host tells it.

They are launched in the file's order, as the format asks (`igvm_defs`; the crate `igvm` computes the same digest in its
measurement/snp.rs). Whoever wrote the file is not trusted: nothing of it is run but by the machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from veil.formats.board import HIGH_MEMORY
from veil.formats.domains import VMPLS
from veil.formats.igvm_directives import IdPublicKey, IdSignature, PageDataType, SnpIdBlock
from veil.formats.launch_digest import VMSA_GPA, PageType
from veil.formats.page_sizes import PAGE_SIZE, PAGE_SIZE_2M
from veil.formats.registers import Efer
from veil.guest.errors import GuestImageError
from veil.guest.igvm.file import Area, Context, IgvmFile, Pages, RequiredRange
from veil.host import DEFAULT_POLICY, LaunchIdentityBlock, LaunchRegion, SharedPages
from veil.image.igvm_parameters import HostParameters, filled_area, takes_command_line
from veil.image.launch_image import LaunchImage, cpuid_page
from veil.snp import MAX_FAR_MEMORY, address_space, ram_ranges
from veil.snp.cpuid import CpuidEntryValues
from veil.snp.layouts import SevFeatures, Vmsa
from veil.snp.layouts.id_block import EcdsaPublicKey, EcdsaSignature, IdAuth, IdBlock

__all__ = ["build_igvm_image", "far_memory", "igvm_memory", "least_privileged_level"]

#: As far below 4 GiB a file may have pages, as for QEMU's flash: there some put firmware.
_FLASH = 8 << 20
#: How much memory above the guest's a file may have beside it.
_FAR = 256 << 20
#: Neighbouring pages are launched together, up to so many bytes.
_MAX_RUN = 4 << 20
#: Of VCPUs and VMPLs together.
_MAX_CONTEXTS = 256
_EXTENDED_STATE = 0xD

_NAMES = {
    PageDataType.NORMAL: "pages",
    PageDataType.SECRETS: "secrets",
    PageDataType.CPUID_DATA: "CPUID page",
    PageDataType.CPUID_XF: "CPUID page",
}


def igvm_memory(file: IgvmFile) -> int:
    """Bytes of RAM below 4 GiB: where the file has pages there, and before them a page for each VMSA outside of the
    guest's memory (`VMSA_GPA`), of which nobody tells the guest. Raises GuestImageError for more than there can be."""
    below = [item.gpa for item in (*file.items, *file.required) if HIGH_MEMORY - _FLASH <= item.gpa < HIGH_MEMORY]
    outside = sum(_is_outside(item) for item in file.items)
    if outside > _MAX_CONTEXTS:
        raise GuestImageError(
            f"{file.name}: it has {outside} VP_CONTEXTs outside of the guest's memory; a guest has at most "
            f"{_MAX_CONTEXTS}"
        )
    return HIGH_MEMORY - min(below, default=HIGH_MEMORY) + outside * PAGE_SIZE


def far_memory(file: IgvmFile, memory: int) -> tuple[int, int] | None:
    """(GPA, length) of the memory by itself that the file wants above all of a guest with so much `memory`: as QEMU,
    this host adds it, and no memory map names it. Raises GuestImageError for more than there can be."""
    above = max(HIGH_MEMORY, address_space(ram_ranges(memory)))
    wanted = [item for item in (*file.items, *file.required) if item.gpa >= above and not _is_outside(item)]
    if not wanted:
        return None
    start = min(item.gpa for item in wanted) // PAGE_SIZE_2M * PAGE_SIZE_2M
    end = -(-max(item.gpa + item.size for item in wanted) // PAGE_SIZE_2M) * PAGE_SIZE_2M
    if end - start > _FAR or end > MAX_FAR_MEMORY:
        raise GuestImageError(
            f"{file.name}: it wants memory from {start:#x} to {end:#x}, where the guest has none; this host adds "
            f"{_FAR >> 20} MiB at most, below {MAX_FAR_MEMORY:#x}"
        )
    return start, end - start


def least_privileged_level(file: IgvmFile) -> int:
    """The highest VMPL that the file has a context for."""
    return max(int(_vmsa(item).vmpl) for item in file.items if isinstance(item, Context))


def build_igvm_image(
    file: IgvmFile,
    *,
    ram: Sequence[tuple[int, int]],
    vcpus: int,
    cpuid: Sequence[CpuidEntryValues],
    command_line: str = "",
    policy: int = DEFAULT_POLICY,
    far: tuple[int, int] | None = None,
) -> LaunchImage:
    """The image. `ram`: (GPA, length) of each piece there will be, `igvm_memory` among them, and not `far`, which is
    `far_memory`. `policy`: for a file that has none.

    Raises GuestImageError if the file wants memory, processors or parameters that the guest does not have.
    """
    own = igvm_memory(file)
    next_outside = HIGH_MEMORY - own
    flash = next_outside + PAGE_SIZE * sum(map(_is_outside, file.items))
    usable = [piece for piece in ram if not own or piece[0] != next_outside]
    host = HostParameters(usable, vcpus, command_line)
    for item in (*file.required, *file.items):
        if not _is_outside(item):
            _require_memory(item, usable, flash, far)
    regions: list[LaunchRegion] = []
    shared: list[SharedPages] = []
    levels: dict[tuple[int, int], str] = {}
    for item in file.items:
        if isinstance(item, Area):
            regions.append(LaunchRegion(item.gpa, PageType.UNMEASURED, filled_area(item, host), name="parameters"))
        elif isinstance(item, Context):
            regions.append(_context(item, vcpus, levels, next_outside))
            next_outside += PAGE_SIZE * _is_outside(item)
        elif item.shared:
            shared.append(SharedPages(item.gpa, bytes(item.data or b""), item.size))
        else:
            regions.append(_pages(item, cpuid))
    if not any(vcpu == 0 for vcpu, _ in levels):
        raise GuestImageError(f"{file.name}: it has no VP_CONTEXT for VCPU 0, which begins")
    if command_line and not takes_command_line(item for item in file.items if isinstance(item, Area)):
        raise GuestImageError(f"{file.name}: it asks for no command line, and would not see the one that is given")
    if file.policy is not None:
        policy = file.policy
    return LaunchImage(
        tuple(_joined(regions)),
        (),
        command_line,
        shared=tuple(shared),
        policy=policy,
        identity=_identity(file.identity, policy) if file.identity is not None else None,
    )


def _is_outside(item: object) -> bool:
    return isinstance(item, Context) and item.gpa == VMSA_GPA


def _require_memory(
    item: Pages | Area | Context | RequiredRange,
    usable: Sequence[tuple[int, int]],
    flash: int,
    far: tuple[int, int] | None,
) -> None:
    pieces = (*usable, (flash, HIGH_MEMORY - flash), *(() if far is None else (far,)))
    gpa, size = item.gpa, item.size
    if not any(start <= gpa and gpa + size <= start + length for start, length in pieces):
        raise GuestImageError(
            f"{item.where}: {size:#x} bytes at {gpa:#x} are not in the guest's memory, which is "
            f"{', '.join(f'{start:#x} to {start + length:#x}' for start, length in usable)}: give it more, or build "
            "the file for other addresses"
        )


def _vmsa(context: Context) -> Vmsa:
    return Vmsa.from_buffer_copy(context.vmsa)


def _context(item: Context, vcpus: int, levels: dict[tuple[int, int], str], outside: int) -> LaunchRegion:
    vmsa = _vmsa(item)
    if item.vp_index >= vcpus:
        raise GuestImageError(
            f"{item.where}: it is for VCPU {item.vp_index}, and the guest has {vcpus}: --vcpus {item.vp_index + 1}"
        )
    if vmsa.vmpl >= VMPLS:
        raise GuestImageError(f"{item.where}: its VMSA is for VMPL {vmsa.vmpl}; there are 0 to {VMPLS - 1}")
    # VMRUN would refuse it, in words that are about VMSAs in general.
    if not vmsa.sev_features & SevFeatures.SNP or not vmsa.efer & Efer.SVME:
        raise GuestImageError(
            f"{item.where}: its VMSA cannot be run: SEV_FEATURES ({vmsa.sev_features:#x}) must have bit 0 (SNP), and "
            f"EFER ({vmsa.efer:#x}) bit 12 (SVME)"
        )
    other = levels.setdefault((item.vp_index, vmsa.vmpl), item.where)
    if other != item.where:
        raise GuestImageError(f"{item.where}: a second context of VMPL {vmsa.vmpl} for VCPU {item.vp_index}")
    return LaunchRegion(
        outside if _is_outside(item) else item.gpa,
        PageType.VMSA,
        item.vmsa,
        vcpu=item.vp_index,
        vmpl=vmsa.vmpl,
        measured_gpa=item.gpa,
        name="VMSA",
    )


def _pages(item: Pages, cpuid: Sequence[CpuidEntryValues]) -> LaunchRegion:
    name = _NAMES[item.kind]
    if item.kind == PageDataType.SECRETS:
        return LaunchRegion(item.gpa, PageType.SECRETS, size=item.size, name=name)
    if item.kind == PageDataType.CPUID_DATA:
        return LaunchRegion(item.gpa, PageType.CPUID, cpuid_page(cpuid), name=name)
    if item.kind == PageDataType.CPUID_XF:
        extended = [entry for entry in cpuid if entry.leaf == _EXTENDED_STATE]
        return LaunchRegion(item.gpa, PageType.CPUID, cpuid_page(extended), name=name)
    kind = PageType.UNMEASURED if item.unmeasured else PageType.NORMAL
    return LaunchRegion(
        item.gpa, kind, bytes(item.data or b""), size=item.size, large=item.size == PAGE_SIZE_2M, name=name
    )


def _joined(regions: Sequence[LaunchRegion]) -> Iterator[LaunchRegion]:
    """Neighbours that differ in nothing but address and content as one: they are measured page by page anyway."""
    run: list[LaunchRegion] = []
    length = 0
    for region in regions:
        joins = (
            run
            and region.kind in (PageType.NORMAL, PageType.UNMEASURED)
            and _sort(region) == _sort(run[0])
            and region.gpa == run[0].gpa + length
            and length + region.length <= _MAX_RUN
        )
        if run and not joins:
            yield _one(run, length)
            run, length = [], 0
        run.append(region)
        length += region.length
    if run:
        yield _one(run, length)


def _sort(region: LaunchRegion) -> tuple[PageType, bool, str, bool]:
    # Zeros take no room here, so that a few headers do not make as much of them as the guest has memory.
    return region.kind, region.large, region.name, not region.data


def _one(run: Sequence[LaunchRegion], length: int) -> LaunchRegion:
    if not run[0].data:
        return replace(run[0], size=length)
    return replace(run[0], data=b"".join(part.data.ljust(part.length, b"\0") for part in run), size=length)


def _identity(claim: SnpIdBlock, policy: int) -> LaunchIdentityBlock:
    """As SNP_LAUNCH_FINISH takes it (56860, "ID_BLOCK", "ID_AUTH"); the file leaves the policy to another header."""
    block = IdBlock(claim.ld, claim.family_id, claim.image_id, claim.version, claim.guest_svn, policy)
    proof = IdAuth(
        id_key_algorithm=claim.id_key_algorithm,
        author_key_algorithm=claim.author_key_algorithm,
        id_block_signature=_signature(claim.id_key_signature),
        id_key=_key(claim.id_public_key),
        id_key_signature=_signature(claim.author_key_signature),
        author_key=_key(claim.author_public_key),
    )
    return LaunchIdentityBlock(bytes(block), bytes(proof), bool(claim.author_key_enabled))


def _signature(given: IdSignature) -> EcdsaSignature:
    return EcdsaSignature(given.r_comp, given.s_comp)


def _key(given: IdPublicKey) -> EcdsaPublicKey:
    return EcdsaPublicKey(given.curve, given.qx, given.qy)
