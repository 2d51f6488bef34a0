# SPDX-License-Identifier: GPL-2.0-or-later
"""Read an ELF64 kernel: what to load where, and where it starts (System V gABI, 'Object Files')."""

import itertools
import struct
from dataclasses import dataclass

from veil.guest.errors import GuestImageError

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_ET_EXEC, _ET_DYN, _EM_X86_64, _PT_LOAD = 2, 3, 62, 1
_KERNEL_HALF = 1 << 47


@dataclass(frozen=True)
class Segment:
    """A loadable piece: `data` goes to physical address `address`; up to `size` bytes the rest is zero."""

    address: int
    virtual: int
    data: bytes
    size: int


@dataclass(frozen=True)
class ElfKernel:
    """The load map of a vmlinux; `entry` is the physical address of startup_64."""

    entry: int
    segments: tuple[Segment, ...]

    @property
    def start(self) -> int:
        """The lowest physical address used."""
        return min(segment.address for segment in self.segments)

    @property
    def end(self) -> int:
        """The address after the highest one used, bss included."""
        return max(segment.address + segment.size for segment in self.segments)


def is_elf(data: bytes) -> bool:
    """Whether it starts as an ELF file does."""
    return data[:4] == b"\x7fELF"


def parse_kernel(data: bytes, name: str) -> ElfKernel:
    """The load map of the ELF kernel `data`; `name` is for messages."""
    if not is_elf(data) or len(data) < _HEADER.size:
        raise GuestImageError(f"{name}: not an ELF kernel")
    ident, kind, machine, _, entry, phoff, _, _, _, phentsize, phnum, _, _, _ = _HEADER.unpack_from(data)
    if ident[4:6] != b"\x02\x01" or machine != _EM_X86_64 or kind not in (_ET_EXEC, _ET_DYN):
        raise GuestImageError(f"{name}: an ELF file, but no 64-bit x86 kernel")
    if phentsize != _PROGRAM.size or phoff + phnum * phentsize > len(data):
        raise GuestImageError(f"{name}: its ELF program headers lie outside the file")
    segments = []
    for index in range(phnum):
        tag, _, offset, virtual, physical, filesz, memsz, _ = _PROGRAM.unpack_from(data, phoff + index * phentsize)
        if tag != _PT_LOAD or not memsz:
            continue
        if offset + filesz > len(data) or filesz > memsz or physical + memsz > 1 << 46:
            raise GuestImageError(f"{name}: ELF segment {index} lies outside the file or the address space")
        segments.append(Segment(physical, virtual, data[offset : offset + filesz], memsz))
    segments.sort(key=lambda segment: segment.address)
    if not segments:
        raise GuestImageError(f"{name}: an ELF file without loadable segments")
    for before, after in itertools.pairwise(segments):
        if before.address + before.size > after.address:
            raise GuestImageError(f"{name}: its ELF segments overlap at {after.address:#x}")
    return ElfKernel(_physical_entry(entry, segments, name), tuple(segments))


def _physical_entry(entry: int, segments: list[Segment], name: str) -> int:
    # x86 Linux gives a physical entry point; a kernel linked otherwise gives a virtual one.
    virtual = entry >= _KERNEL_HALF
    for segment in segments:
        base = segment.virtual if virtual else segment.address
        if base <= entry < base + len(segment.data):
            return segment.address + entry - base
    raise GuestImageError(f"{name}: its entry point {entry:#x} lies in no loaded segment")
