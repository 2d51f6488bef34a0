# SPDX-License-Identifier: GPL-2.0-or-later
"""Read ELF64 files (System V gABI): what of a kernel to load where, which libraries a program needs."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from veil.formats.elf_headers import ELF_HEADER, ELF_MAGIC, EM_X86_64, ET_DYN, ET_EXEC
from veil.guest.errors import GuestImageError

_PROGRAM = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<qQ")
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29
#: bytes of a dynamic section, more than any linker makes
_MOST_DYNAMIC = 1 << 16
#: of a name or a list of folders in a dynamic section; PATH_MAX of an interpreter (execve(2))
_LONGEST = 4096
_PF_X, _PF_W, _PF_R = 1, 2, 4
_MOST_OFTEN = 4
_KERNEL_HALF = 1 << 47
_PHYSICAL_END = 1 << 46


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
    return data[:4] == ELF_MAGIC


def is_library(data: bytes) -> bool:
    """Whether the loader takes it for one: a shared object for x86-64."""
    return is_elf(data) and data[4:6] == b"\x02\x01" and data[16:20] == struct.pack("<HH", ET_DYN, EM_X86_64)


class _Header(NamedTuple):
    kind: int
    entry: int
    programs: int
    """Offset of the program headers."""
    number: int

    @property
    def programs_end(self) -> int:
        return self.programs + self.number * _PROGRAM.size


class _Load(NamedTuple):
    """A PT_LOAD that takes memory."""

    flags: int
    offset: int
    virtual: int
    physical: int
    filesz: int
    memsz: int


def _parse_header(data: bytes, name: str, what: str) -> _Header:
    if not is_elf(data) or len(data) < ELF_HEADER.size:
        raise GuestImageError(f"{name}: not an ELF {what}")
    ident, kind, machine, _, entry, phoff, _, _, _, phentsize, phnum, _, _, _ = ELF_HEADER.unpack_from(data)
    if ident[4:6] != b"\x02\x01" or machine != EM_X86_64 or kind not in (ET_EXEC, ET_DYN):
        raise GuestImageError(f"{name}: an ELF file, but no 64-bit x86 {what}")
    header = _Header(kind, entry, phoff, phnum)
    if phentsize != _PROGRAM.size or header.programs_end > len(data):
        raise GuestImageError(f"{name}: its ELF program headers lie outside the file")
    return header


def _loads(data: bytes, name: str, header: _Header) -> list[_Load]:
    loads = []
    for index in range(header.number):
        tag, *fields, _ = _PROGRAM.unpack_from(data, header.programs + index * _PROGRAM.size)
        load = _Load(*fields)
        if tag != _PT_LOAD or not load.memsz:
            continue
        if load.offset + load.filesz > len(data) or load.filesz > load.memsz:
            raise GuestImageError(f"{name}: ELF segment {index} lies outside the file")
        loads.append(load)
    # Each becomes a copy: what many headers have of the same bytes would fill the memory.
    if sum(load.filesz for load in loads) > _MOST_OFTEN * len(data):
        raise GuestImageError(f"{name}: its ELF segments have the same bytes of the file again and again")
    if not loads:
        raise GuestImageError(f"{name}: an ELF file without loadable segments")
    return loads


def _refuse_overlaps(segments: Sequence[Segment | ProgramSegment], name: str) -> None:
    """`segments`: by address."""
    for before, after in itertools.pairwise(segments):
        if before.address + before.size > after.address:
            raise GuestImageError(f"{name}: its ELF segments overlap at {after.address:#x}")


def parse_kernel(data: bytes, name: str) -> ElfKernel:
    """The load map of the ELF kernel `data`; `name` is for messages."""
    header = _parse_header(data, name, "kernel")
    segments = [
        Segment(load.physical, load.virtual, data[load.offset : load.offset + load.filesz], load.memsz)
        for load in _loads(data, name, header)
    ]
    if any(segment.address + segment.size > _PHYSICAL_END for segment in segments):
        raise GuestImageError(f"{name}: an ELF segment lies outside the address space")
    segments.sort(key=lambda segment: segment.address)
    _refuse_overlaps(segments, name)
    return ElfKernel(_physical_entry(header.entry, segments, name), tuple(segments))


def _physical_entry(entry: int, segments: list[Segment], name: str) -> int:
    # x86 Linux gives a physical entry point; a kernel linked otherwise gives a virtual one.
    virtual = entry >= _KERNEL_HALF
    for segment in segments:
        base = segment.virtual if virtual else segment.address
        if base <= entry < base + len(segment.data):
            return segment.address + entry - base
    raise GuestImageError(f"{name}: its entry point {entry:#x} lies in no loaded segment")


@dataclass(frozen=True)
class Linking:
    """What the dynamic loader is told: its own path (None for a library or a static program), and libraries by name."""

    interpreter: str | None
    needed: tuple[str, ...]
    rpath: tuple[str, ...] = ()
    """Folders as they stand there (DT_RPATH), with `$ORIGIN` and the like."""
    runpath: tuple[str, ...] | None = None
    """The same of DT_RUNPATH; None if there is none, and then DT_RPATH counts."""


def parse_linking(data: bytes, name: str) -> Linking:
    """Of a program or library for x86-64. Raises GuestImageError."""
    try:
        if not is_elf(data):
            raise ValueError
        phoff, phentsize, phnum = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
        headers = [_PROGRAM.unpack_from(data, phoff + index * phentsize) for index in range(phnum)]
        loads = [(virtual, offset, size) for tag, _, offset, virtual, _, size, *_ in headers if tag == _PT_LOAD]
        interpreter: str | None = None
        dynamic: list[tuple[int, int]] = []
        for tag, _, offset, _, _, size, *_ in headers:
            if tag == _PT_INTERP and interpreter is None:
                interpreter = data[offset : offset + min(size, _LONGEST)].rstrip(b"\0").decode("ascii")
            elif tag == _PT_DYNAMIC and not dynamic:
                if size > _MOST_DYNAMIC:
                    raise ValueError
                dynamic = list(_DYNAMIC.iter_unpack(data[offset : offset + size]))
        strings = next((value for tag, value in dynamic if tag == _DT_STRTAB), 0)
        base = next((offset - virtual for virtual, offset, size in loads if virtual <= strings < virtual + size), 0)

        def texts(wanted: int) -> Iterator[str]:
            return (_string(data, base + strings + value) for tag, value in dynamic if tag == wanted)

        needed = tuple(dict.fromkeys(texts(_DT_NEEDED)))
        rpath, runpath = next(texts(_DT_RPATH), None), next(texts(_DT_RUNPATH), None)
    except (struct.error, ValueError, OverflowError) as error:
        raise GuestImageError(f"{name}: not an ELF program or library that can be read") from error
    if interpreter is not None and (not interpreter.startswith("/") or "\0" in interpreter):
        raise GuestImageError(f"{name}: its interpreter, which loads it, is {interpreter!r}, and no absolute path")
    return Linking(interpreter, needed, _folders(rpath or ""), None if runpath is None else _folders(runpath))


def _string(data: bytes, offset: int) -> str:
    # Bounded, for each of many entries can have the same long text.
    if offset < 0:
        raise ValueError
    return data[offset : data.index(b"\0", offset, offset + _LONGEST)].decode("ascii")


def _folders(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(":")))


@dataclass(frozen=True)
class ProgramSegment:
    """A PT_LOAD of a program: `data` goes to `address`, up to `size` bytes the rest is zero."""

    address: int
    data: bytes
    size: int
    readable: bool
    writable: bool
    executable: bool


@dataclass(frozen=True)
class ElfProgram:
    """The load map of a program or a dynamic loader. Addresses of a `movable` one are from the place that is chosen."""

    movable: bool
    entry: int
    headers: int
    """Where its program headers are in memory, 0 if they are not loaded."""
    header_count: int
    segments: tuple[ProgramSegment, ...]
    interpreter: str | None

    @property
    def start(self) -> int:
        """The lowest address used."""
        return self.segments[0].address

    @property
    def end(self) -> int:
        """The address after the highest one used."""
        return max(segment.address + segment.size for segment in self.segments)


def parse_program(data: bytes, name: str) -> ElfProgram:
    """Of an x86-64 program; `name` is for messages. Raises GuestImageError."""
    header = _parse_header(data, name, "program")
    segments, headers = [], 0
    for load in _loads(data, name, header):
        if load.virtual + load.memsz > _KERNEL_HALF:
            raise GuestImageError(f"{name}: an ELF segment lies outside the address space")
        segments.append(
            ProgramSegment(
                load.virtual, data[load.offset : load.offset + load.filesz], load.memsz,
                bool(load.flags & _PF_R), bool(load.flags & _PF_W), bool(load.flags & _PF_X),
            )
        )  # fmt: skip
        if load.offset <= header.programs and header.programs_end <= load.offset + load.filesz:
            headers = load.virtual + header.programs - load.offset
    segments.sort(key=lambda segment: segment.address)
    _refuse_overlaps(segments, name)
    if not any(item.executable and item.address <= header.entry < item.address + item.size for item in segments):
        raise GuestImageError(f"{name}: its entry point {header.entry:#x} lies in no segment of code: is it a library?")
    interpreter = parse_linking(data, name).interpreter
    return ElfProgram(header.kind == ET_DYN, header.entry, headers, header.number, tuple(segments), interpreter)
