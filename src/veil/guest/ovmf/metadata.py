# SPDX-License-Identifier: GPL-2.0-or-later
"""What an OVMF file says of its launch as an SEV-SNP guest.

edk2, OvmfPkg/ResetVector: a table of GUIDs that ends 32 bytes before the end of the file (Ia16/ResetVectorVtf0.asm)
leads to a list of sections (X64/OvmfSevMetadata.asm), to the place of the kernel's hashes, and to where further
processors start. QEMU reads the same (hw/i386/pc_sysfw_ovmf.c, target/i386/sev.c). The file is anybody's: every field
is checked before it is used.
"""

from __future__ import annotations

import enum
import itertools
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

from veil.formats.page_sizes import PAGE_SIZE
from veil.guest.errors import GuestImageError
from veil.guest.ovmf.kernel_hashes import HASHES_SIZE

__all__ = ["Firmware", "Section", "SectionType", "parse_firmware"]

_FOUR_GIB = 1 << 32
#: as QEMU's boards have room for
_MAX_FILE = 8 << 20
#: The table's last entry ends so long before the end of the file: behind it is the reset vector.
_TABLE_END = 32

_FOOTER = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
_METADATA = uuid.UUID("dc886566-984a-4798-a75e-5585a7bf67cc")
_HASH_TABLE = uuid.UUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
_RESET_BLOCK = uuid.UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")

#: an entry's end: its size, this included, and its GUID
_ENTRY = struct.Struct("<H16s")
_U32 = struct.Struct("<I")
#: signature, size, version, number of sections
_HEADER = struct.Struct("<4sIII")
_SECTION = struct.Struct("<III")
_SIGNATURE, _VERSION = b"ASEV", 1
_MAX_SECTIONS = 64


class SectionType(enum.IntEnum):
    """What a section of the metadata is for."""

    SEC_MEMORY = 1
    """Zeros, validated: the firmware's first memory."""
    SECRETS = 2
    CPUID = 3
    SVSM_CAA = 4
    """The calling area for a guest under an SVSM."""
    KERNEL_HASHES = 0x10


#: One page each, and no more than one of them.
_SINGLE_PAGES = frozenset(SectionType) - {SectionType.SEC_MEMORY}


@dataclass(frozen=True)
class Section:
    """A piece of guest memory that the launch prepares."""

    kind: SectionType
    gpa: int
    size: int


@dataclass(frozen=True)
class Firmware:
    """A firmware file that can be launched."""

    data: bytes = field(repr=False)
    sections: tuple[Section, ...]
    """In the file's order, which is the order in which they are measured."""
    reset_address: int | None
    """Where processors but the first start: code segment's base and offset, as one number."""
    hashes_address: int | None
    """Where the table of the kernel's hashes belongs, in the page of that section."""

    @property
    def gpa(self) -> int:
        """The file lies so that it ends at 4 GiB."""
        return _FOUR_GIB - len(self.data)

    def section(self, kind: SectionType) -> Section | None:
        """The first of this type."""
        return next((section for section in self.sections if section.kind == kind), None)


def parse_firmware(data: bytes, name: str) -> Firmware:
    """Read and check it. Raises GuestImageError, one line, for whatever is not as it must be; `name` is the file's."""
    if not _TABLE_END + _ENTRY.size <= len(data) <= _MAX_FILE or len(data) % PAGE_SIZE:
        raise GuestImageError(
            f"{name}: firmware has whole pages and at most {_MAX_FILE >> 20} MiB, this file has {len(data)} bytes"
        )
    table = _table(data, name)
    if _METADATA not in table:
        raise GuestImageError(
            f"{name}: this firmware has no SEV metadata, so it cannot be launched as an SEV-SNP guest: take one that "
            "has (--firmware debian), in one file with its variables"
        )
    sections = tuple(_sections(data, _number(table, _METADATA, "SEV metadata", name), name))
    reset = _number(table, _RESET_BLOCK, "reset block", name) if _RESET_BLOCK in table else None
    return Firmware(data, sections, reset, _hashes_address(table, sections, name))


def _table(data: bytes, name: str) -> dict[uuid.UUID, bytes]:
    end = len(data) - _TABLE_END
    size, guid = _ENTRY.unpack_from(data, end - _ENTRY.size)
    if uuid.UUID(bytes_le=guid) != _FOOTER:
        raise GuestImageError(f"{name}: this is not OVMF: no table of GUIDs before its reset vector")
    start = end - size
    end -= _ENTRY.size
    if not 0 <= start <= end:
        raise GuestImageError(f"{name}: its table of GUIDs has {size} bytes, which is impossible")
    found: dict[uuid.UUID, bytes] = {}
    while end - start >= _ENTRY.size:
        size, guid = _ENTRY.unpack_from(data, end - _ENTRY.size)
        identity = uuid.UUID(bytes_le=guid)
        if not _ENTRY.size <= size <= end - start:
            raise GuestImageError(f"{name}: entry {identity} of its table has {size} bytes, which is impossible")
        # Two readers of the same file must not find different ones.
        if identity in found:
            raise GuestImageError(f"{name}: entry {identity} stands in its table twice")
        found[identity] = data[end - size : end - _ENTRY.size]
        end -= size
    if end != start:
        raise GuestImageError(f"{name}: {end - start} bytes of its table belong to no entry")
    return found


def _number(table: dict[uuid.UUID, bytes], identity: uuid.UUID, what: str, name: str) -> int:
    content = table[identity]
    if len(content) < _U32.size:
        raise GuestImageError(f"{name}: the table's entry for the {what} has {len(content)} bytes, at least 4 are due")
    value: int = _U32.unpack_from(content)[0]
    return value


def _sections(data: bytes, from_end: int, name: str) -> Iterator[Section]:
    if not _HEADER.size <= from_end <= len(data):
        raise GuestImageError(f"{name}: its SEV metadata lies outside of the file ({from_end} bytes before its end)")
    start = len(data) - from_end
    signature, size, version, count = _HEADER.unpack_from(data, start)
    if signature != _SIGNATURE or version != _VERSION:
        raise GuestImageError(
            f"{name}: its SEV metadata has the signature {signature!r} and version {version}, known are {_SIGNATURE!r} "
            f"and {_VERSION}"
        )
    if not 0 < count <= _MAX_SECTIONS or size != _HEADER.size + count * _SECTION.size or size > from_end:
        raise GuestImageError(f"{name}: its SEV metadata has {count} sections in {size} bytes, which is impossible")
    found = [
        _section(_SECTION.unpack_from(data, start + _HEADER.size + index * _SECTION.size), f"{name}: section {index}")
        for index in range(count)
    ]
    for kind in _SINGLE_PAGES:
        of_kind = [section for section in found if section.kind == kind]
        if len(of_kind) > 1 or any(section.size != PAGE_SIZE for section in of_kind):
            raise GuestImageError(f"{name}: a firmware has one {kind.name} section of one page at most")
        if not of_kind and kind in (SectionType.SECRETS, SectionType.CPUID):
            raise GuestImageError(f"{name}: its SEV metadata has no {kind.name} section: it is not for SEV-SNP")
    flash = Section(SectionType.SEC_MEMORY, _FOUR_GIB - len(data), len(data))
    for before, after in itertools.pairwise(sorted((*found, flash), key=lambda section: section.gpa)):
        if before.gpa + before.size > after.gpa:
            raise GuestImageError(f"{name}: two sections of its SEV metadata overlap at {after.gpa:#x}")
    yield from found


def _section(fields: tuple[int, int, int], where: str) -> Section:
    gpa, size, kind = fields
    try:
        known = SectionType(kind)
    except ValueError:
        raise GuestImageError(
            f"{where} of its SEV metadata has the type {kind:#x}, which this version does not know"
        ) from None
    if gpa % PAGE_SIZE or size % PAGE_SIZE or not size or gpa + size > _FOUR_GIB:
        raise GuestImageError(
            f"{where} of its SEV metadata ({known.name}) is {size:#x} bytes at {gpa:#x}: not whole pages below 4 GiB"
        )
    return Section(known, gpa, size)


def _hashes_address(table: dict[uuid.UUID, bytes], sections: tuple[Section, ...], name: str) -> int | None:
    page = next((section for section in sections if section.kind == SectionType.KERNEL_HASHES), None)
    address = _number(table, _HASH_TABLE, "kernel's hashes", name) if _HASH_TABLE in table else 0
    # Firmware that does not look at hashes says 0, and has no page for them.
    if page is None:
        return None
    if not page.gpa <= address <= page.gpa + page.size - HASHES_SIZE:
        raise GuestImageError(f"{name}: its table of kernel hashes at {address:#x} is not in its page at {page.gpa:#x}")
    return address
