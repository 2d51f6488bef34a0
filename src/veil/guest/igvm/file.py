# SPDX-License-Identifier: GPL-2.0-or-later
"""What an IGVM file says of its launch as an SEV-SNP guest.

The file is anybody's: every field is checked before it is used. What only those can check who know the guest's memory
and VCPUs is checked where the image is made (`veil.image.igvm_image`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from veil.formats.igvm import PLATFORM_VERSION, HeaderType, PlatformType
from veil.formats.igvm_directives import PageDataFlags, PageDataType, RequiredMemoryFlags, SnpIdBlock
from veil.formats.launch_digest import VMSA_GPA
from veil.formats.page_sizes import PAGE_SIZE, PAGE_SIZE_2M
from veil.guest.errors import GuestImageError
from veil.guest.igvm.headers import PARAMETERS, Header, read_headers
from veil.guest.named_files import read_named_file

__all__ = ["Area", "Context", "IgvmFile", "Pages", "ParameterRequest", "RequiredRange", "open_igvm", "parse_igvm"]

_MAX_FILE = 1 << 30
_ADDRESSES = 1 << 48
_VTLS = 3
_PLATFORMS, _DATA_TYPES = frozenset(PlatformType), frozenset(PageDataType)
# As numbers: the complement of a set of flags has only flags that are known.
_KNOWN_FLAGS = int(PageDataFlags.IS_2MB_PAGE | PageDataFlags.UNMEASURED | PageDataFlags.SHARED)
_KNOWN_MEMORY_FLAGS = int(RequiredMemoryFlags.VTL2_PROTECTABLE)


@dataclass(frozen=True, slots=True)
class Pages:
    """A page of data, of 4 KiB or 2 MiB; or an error range, which is shared and zero."""

    where: str
    gpa: int
    size: int
    kind: PageDataType
    data: memoryview | None
    """None: zeros."""
    unmeasured: bool = False
    shared: bool = False


@dataclass(frozen=True, slots=True)
class ParameterRequest:
    """A value that the loader is to deposit in an area."""

    where: str
    kind: HeaderType
    offset: int


@dataclass(frozen=True, slots=True)
class Area:
    """A parameter area that is imported."""

    where: str
    gpa: int
    size: int
    initial: memoryview | None
    parameters: tuple[ParameterRequest, ...]


@dataclass(frozen=True, slots=True)
class Context:
    """A VMSA."""

    where: str
    gpa: int
    """Page-aligned; `VMSA_GPA` if it lies outside of the guest's memory, as KVM's do."""
    vp_index: int
    vmsa: bytes

    @property
    def size(self) -> int:
        """One page."""
        return PAGE_SIZE


@dataclass(frozen=True, slots=True)
class RequiredRange:
    """Memory that there must be."""

    where: str
    gpa: int
    size: int


@dataclass(frozen=True)
class IgvmFile:
    """A file that can be launched as an SEV-SNP guest. No two of its items share a page."""

    name: str
    items: tuple[Pages | Area | Context, ...] = field(repr=False)
    """In the file's order, which is the order in which they are measured."""
    required: tuple[RequiredRange, ...]
    policy: int | None
    identity: SnpIdBlock | None


def open_igvm(path: Path) -> IgvmFile:
    """The file at this path. Raises GuestImageError."""
    return parse_igvm(read_named_file(path, "the IGVM file", _MAX_FILE), str(path))


def parse_igvm(data: bytes, name: str) -> IgvmFile:
    """Read and check it. Raises GuestImageError, one line, for whatever is not as it must be; `name` is the file's."""
    headers = read_headers(data, name)
    reader = _Reader(data, headers.data_start, name)
    for header in headers.known:
        if header.kind != HeaderType.SUPPORTED_PLATFORM:
            break
        reader.platform(header)
    reader.require_platform()
    for header in headers.known:
        if header.kind in PARAMETERS:
            reader.parameter(header)
        elif header.kind != HeaderType.SUPPORTED_PLATFORM:
            read, has_mask = _READERS[header.kind]
            # What is for other platforms has its shape checked, and is left out.
            if not has_mask or header.content.compatibility_mask & reader.mask:
                read(reader, header)
    return reader.finish()


class _Reader:
    """Takes in header after header."""

    def __init__(self, data: bytes, data_start: int, name: str) -> None:
        self._data, self._data_start, self._name = memoryview(data), data_start, name
        self._platforms: list[str] = []
        self._masks = 0
        #: the compatibility mask of SEV-SNP
        self.mask = 0
        self._items: list[Pages | Area | Context] = []
        self._required: list[RequiredRange] = []
        self._areas: dict[int, tuple[int, memoryview | None, list[ParameterRequest]] | None] = {}
        self._policy: int | None = None
        self._identity: SnpIdBlock | None = None

    def _where(self, header: Header) -> str:
        return f"{self._name}: {header}"

    def _refuse(self, header: Header, words: str) -> GuestImageError:
        return GuestImageError(f"{self._where(header)}: {words}")

    def _file_data(self, header: Header, offset: int, size: int) -> memoryview:
        if offset < self._data_start or size > len(self._data) - offset:
            raise self._refuse(
                header,
                f"its data, {size:#x} bytes at {offset:#x}, do not lie in the file's data, which is from "
                f"{self._data_start:#x} to {len(self._data):#x}",
            )
        return self._data[offset : offset + size]

    def _require_range(self, header: Header, gpa: int, size: int, unit: int = PAGE_SIZE) -> None:
        if gpa % unit or size % unit or not size or size > _ADDRESSES - gpa:
            raise self._refuse(
                header, f"{size:#x} bytes at {gpa:#x} are not whole pages of {unit >> 10} KiB below {_ADDRESSES:#x}"
            )

    # Platforms

    def platform(self, header: Header) -> None:
        content = header.content
        mask = content.compatibility_mask
        if mask.bit_count() != 1 or mask & self._masks:
            raise self._refuse(
                header, f"the compatibility mask {mask:#x} is not one bit that no platform before it has"
            )
        self._masks |= mask
        number = content.platform_type
        self._platforms.append(PlatformType(number).name if number in _PLATFORMS else f"{number:#x}")
        if number != PlatformType.SEV_SNP:
            return
        if self.mask:
            raise self._refuse(header, "the platform SEV_SNP stands in the file twice")
        if content.platform_version != PLATFORM_VERSION:
            raise self._refuse(
                header, f"version {content.platform_version} of the platform SEV_SNP; known is {PLATFORM_VERSION}"
            )
        if content.highest_vtl >= _VTLS:
            raise self._refuse(header, f"a highest VTL of {content.highest_vtl}; there are {_VTLS}")
        if content.shared_gpa_boundary:
            raise self._refuse(
                header,
                f"a shared GPA boundary of {content.shared_gpa_boundary:#x}: this machine has no virtual top of "
                "memory (vTOM). Build the file for a host where guests use the C-bit",
            )
        self.mask = mask

    def require_platform(self) -> None:
        if not self.mask:
            raise GuestImageError(
                f"{self._name}: it is not for SEV-SNP; its platforms: {', '.join(self._platforms) or 'none'}"
            )

    # Initialization

    def policy(self, header: Header) -> None:
        if header.content.reserved:
            raise self._refuse(header, "its reserved bytes are not zero")
        if self._policy is not None:
            raise self._refuse(header, "a second guest policy for SEV-SNP")
        self._policy = header.content.policy

    def relocation(self, header: Header) -> None:
        raise self._refuse(
            header,
            "this version does not relocate: build the file for fixed addresses, without relocation for SEV-SNP",
        )

    def corim(self, header: Header) -> None:
        """For verifiers: nothing of it is loaded."""
        if header.content.reserved:
            raise self._refuse(header, "its reserved bytes are not zero")
        self._file_data(header, header.content.file_offset, header.content.size_bytes)

    def other_platform(self, header: Header) -> None:
        raise self._refuse(header, "it is for another platform, and its compatibility mask says SEV_SNP")

    # Directives

    def page(self, header: Header) -> None:
        content = header.content
        if content.reserved or content.flags & ~_KNOWN_FLAGS:
            raise self._refuse(header, f"reserved bits are not zero (flags {content.flags:#x})")
        if content.data_type not in _DATA_TYPES:
            raise self._refuse(header, f"there is no type of data {content.data_type:#x}")
        kind, flags = PageDataType(content.data_type), PageDataFlags(content.flags)
        if kind != PageDataType.NORMAL and flags:
            raise self._refuse(header, f"a {kind.name} page has no flags, not {content.flags:#x}")
        size = PAGE_SIZE_2M if flags & PageDataFlags.IS_2MB_PAGE else PAGE_SIZE
        self._require_range(header, content.gpa, size, size)
        data = self._file_data(header, content.file_offset, size) if content.file_offset else None
        self._items.append(
            Pages(
                self._where(header),
                content.gpa,
                size,
                kind,
                data,
                unmeasured=bool(flags & PageDataFlags.UNMEASURED),
                shared=bool(flags & PageDataFlags.SHARED),
            )
        )

    def error_range(self, header: Header) -> None:
        content = header.content
        self._require_range(header, content.gpa, content.size_bytes)
        self._items.append(
            Pages(self._where(header), content.gpa, content.size_bytes, PageDataType.NORMAL, None, shared=True)
        )

    def required_memory(self, header: Header) -> None:
        content = header.content
        if content.reserved or content.flags & ~_KNOWN_MEMORY_FLAGS:
            raise self._refuse(header, f"reserved bits are not zero (flags {content.flags:#x})")
        self._require_range(header, content.gpa, content.number_of_bytes)
        self._required.append(RequiredRange(self._where(header), content.gpa, content.number_of_bytes))

    def context(self, header: Header) -> None:
        content = header.content
        if content.reserved:
            raise self._refuse(header, "its reserved bytes are not zero")
        self._require_range(header, content.gpa, PAGE_SIZE)
        vmsa = bytes(self._file_data(header, content.file_offset, PAGE_SIZE))
        self._items.append(Context(self._where(header), content.gpa, content.vp_index, vmsa))

    def area(self, header: Header) -> None:
        content = header.content
        index, size = content.parameter_area_index, content.number_of_bytes
        if index in self._areas:
            raise self._refuse(header, f"parameter area {index} stands in the file twice")
        self._require_range(header, 0, size)
        initial = self._file_data(header, content.file_offset, size) if content.file_offset else None
        self._areas[index] = (size, initial, [])

    def _open_area(self, header: Header) -> tuple[int, memoryview | None, list[ParameterRequest]]:
        index = header.content.parameter_area_index
        area = self._areas.get(index)
        if area is None:
            how = "was inserted already" if index in self._areas else "was not declared"
            raise self._refuse(header, f"parameter area {index} {how}")
        return area

    def parameter(self, header: Header) -> None:
        size, _, requests = self._open_area(header)
        offset = header.content.byte_offset
        if offset >= size:
            raise self._refuse(header, f"the offset {offset:#x} lies outside of its area of {size:#x} bytes")
        requests.append(ParameterRequest(self._where(header), header.kind, offset))

    def insert(self, header: Header) -> None:
        content = header.content
        size, initial, requests = self._open_area(header)
        self._require_range(header, content.gpa, size)
        self._areas[content.parameter_area_index] = None
        self._items.append(Area(self._where(header), content.gpa, size, initial, tuple(requests)))

    def id_block(self, header: Header) -> None:
        content = header.content
        if self._identity is not None:
            raise self._refuse(header, "a second ID block for SEV-SNP")
        if any(content.reserved) or content.id_public_key.reserved or content.author_public_key.reserved:
            raise self._refuse(header, "its reserved bytes are not zero")
        if content.author_key_enabled not in (0, 1):
            raise self._refuse(header, f"author_key_enabled is {content.author_key_enabled}, not 0 or 1")
        if not content.author_key_enabled and any(
            bytes(content.author_key_signature) + bytes(content.author_public_key)
        ):
            raise self._refuse(header, "an author's key is given, and is not enabled")
        self._identity = content

    # The whole

    def finish(self) -> IgvmFile:
        if not any(isinstance(item, Context) for item in self._items):
            raise GuestImageError(f"{self._name}: it has no VP_CONTEXT for SEV-SNP: no VCPU would start")
        placed = [item for item in self._items if not (isinstance(item, Context) and item.gpa == VMSA_GPA)]
        for before, after in itertools.pairwise(sorted(placed, key=lambda item: item.gpa)):
            if before.gpa + before.size > after.gpa:
                other = before.where.removeprefix(f"{self._name}: ")
                raise GuestImageError(f"{after.where}: the page at {after.gpa:#x} is also loaded by {other}")
        return IgvmFile(self._name, tuple(self._items), tuple(self._required), self._policy, self._identity)


#: how each type is read, and whether it has a compatibility mask
_READERS: dict[HeaderType, tuple[Callable[[_Reader, Header], None], bool]] = {
    HeaderType.GUEST_POLICY: (_Reader.policy, True),
    HeaderType.RELOCATABLE_REGION: (_Reader.relocation, True),
    HeaderType.PAGE_TABLE_RELOCATION_REGION: (_Reader.relocation, True),
    HeaderType.CORIM_DOCUMENT: (_Reader.corim, True),
    HeaderType.CORIM_SIGNATURE: (_Reader.corim, True),
    HeaderType.CCA_POLICY: (_Reader.other_platform, True),
    HeaderType.PARAMETER_AREA: (_Reader.area, False),
    HeaderType.PAGE_DATA: (_Reader.page, True),
    HeaderType.PARAMETER_INSERT: (_Reader.insert, True),
    HeaderType.VP_CONTEXT: (_Reader.context, True),
    HeaderType.REQUIRED_MEMORY: (_Reader.required_memory, True),
    HeaderType.SNP_ID_BLOCK: (_Reader.id_block, True),
    HeaderType.ERROR_RANGE: (_Reader.error_range, True),
    HeaderType.VBS_MEASUREMENT: (_Reader.other_platform, True),
}
