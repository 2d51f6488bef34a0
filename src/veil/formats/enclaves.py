# SPDX-License-Identifier: GPL-2.0-or-later
"""Enclaves: what the builder, VeilS-ENC, the driver and the runtime inside must see in the same way.

Where everything is in an enclave's address space, and the layout, from which the measurement follows. The pages by
which the runtime speaks are in `enclave_pages`. `guest/enclaves/abi.h` says the same in C, and a test compares them.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from veil.formats.errors import FormatError
from veil.formats.offsets import check_offsets
from veil.formats.page_sizes import PAGE_SIZE

__all__ = [
    "ARENA",
    "CODE_SELECTOR",
    "DATA_SELECTOR",
    "IDT",
    "INFO",
    "LAYOUT_MAGIC",
    "LAYOUT_VERSION",
    "MAX_PAGES",
    "MAX_RECORDS",
    "MAX_SLOTS",
    "MEASUREMENT_BYTES",
    "RUNTIME",
    "SYSTEM",
    "SYSTEM_STRIDE",
    "THREADS",
    "THREAD_AREAS",
    "THREAD_PAGES",
    "THREAD_STRIDE",
    "TOP",
    "VECTOR_STRIDE",
    "WINDOW",
    "WINDOW_STRIDE",
    "Layout",
    "Prot",
    "Record",
    "RecordKind",
    "Stack",
    "ThreadPart",
    "fixed_areas",
    "vector_stack",
]

# The address space. Each is the first address of an area; slot n has its own part `n * ..._STRIDE` further on. A TLB
# finds pages by low bits of their numbers, and a system call needs one of each: each begins at its own place of a MiB.

#: What the program maps by mmap: only address space, until the service puts pages of the pool there.
ARENA = 0x1000_0000_0000
#: The window of a slot: memory that the enclave and its process share, at the same address in both. The first page
#: begins with `WindowBlock`, the rest is for what system calls read and write.
WINDOW = 0x6000_0004_0000
WINDOW_STRIDE = 0x4_0000
#: The runtime's code and data: records of the layout.
RUNTIME = 0x7000_0000_0000
#: What a slot (a thread) has of its own: `ThreadPart`. Aligned to its stride: any stack pointer leads there.
THREADS = 0x7100_0008_0000
THREAD_STRIDE = 0x1_0000
#: A slot's GDT and TSS: one page, supervisor's, read-only.
SYSTEM = 0x7200_0000_0000
SYSTEM_STRIDE = 0x2000
#: One page for all slots, supervisor's, read-only.
IDT = 0x72FF_FFFF_F000
#: `InfoPage`: the user's, read-only.
INFO = 0x7300_0000_0000
#: No address of an enclave is here or above.
TOP = 0x7FFF_FFFF_F000

MAX_SLOTS = 64
MAX_RECORDS = 512
#: Pages of all records, or of the pool: 4 GiB.
MAX_PAGES = 1 << 20
_MAX_ARENA_PAGES = (WINDOW - ARENA) // PAGE_SIZE

#: The handler of vector v begins at `Layout.vectors + v * VECTOR_STRIDE`.
VECTOR_STRIDE = 16
_VECTORS = 256

CODE_SELECTOR = 0x23
DATA_SELECTOR = 0x1B


class ThreadPart(enum.IntEnum):
    """Offsets in a slot's area, in bytes. Stacks grow down from theirs, to a page that is not there."""

    CONTROL = 0x0
    """The runtime's own data of this thread: one page. Its first words are the runtime's to lay out."""
    IST1_TOP = 0x3000
    """4 KiB."""
    IST2_TOP = 0x6000
    """8 KiB: page faults, of the runtime's own copies too."""
    IST3_TOP = 0x8000
    """4 KiB."""
    STACK_TOP = 0xF000
    """24 KiB: RSP when the slot is entered for the first time."""
    MAILBOX = 0xF000
    """`Mailbox`."""


#: (first offset, offset behind the last) of what is mapped of a slot's area. Nothing is mapped below a stack: one that
#: grows too far is a page fault of the runtime's, which ends the enclave, and overwrites nothing.
THREAD_AREAS = (
    (ThreadPart.CONTROL, PAGE_SIZE), (0x2000, ThreadPart.IST1_TOP), (0x4000, ThreadPart.IST2_TOP),
    (0x7000, ThreadPart.IST3_TOP), (0x9000, THREAD_STRIDE),
)  # fmt: skip
THREAD_PAGES = sum(behind - first for first, behind in THREAD_AREAS) // PAGE_SIZE


class Stack(enum.IntEnum):
    """Interrupt stacks, by the vectors that use them."""

    UNDEFINED_OPCODE = 1
    """System calls among them: EFER.SCE is 0."""
    PAGE_FAULT = 2
    OTHERS = 3


def vector_stack(vector: int) -> Stack:
    """The interrupt stack table entry of a vector's gate."""
    return {6: Stack.UNDEFINED_OPCODE, 14: Stack.PAGE_FAULT}.get(vector, Stack.OTHERS)


class Prot(enum.IntFlag):
    """What an enclave may do with its page; the numbers of mmap(2)."""

    NONE = 0
    R = 1
    W = 2
    X = 4


class RecordKind(enum.IntEnum):
    """What a record's pages hold at first."""

    CONTENT = 1
    """Given with the enclave, and measured."""
    ZERO = 2


class _Header(ctypes.LittleEndianStructure):
    _pack_ = 1
    _fields_ = [
        ("magic", ctypes.c_char * 8),
        ("version", ctypes.c_uint32),
        ("slots", ctypes.c_uint32),
        ("entry", ctypes.c_uint64),
        ("vectors", ctypes.c_uint64),
        ("pool_pages", ctypes.c_uint64),
        ("arena_pages", ctypes.c_uint64),
        ("window_pages", ctypes.c_uint32),
        ("records", ctypes.c_uint32),
        ("reserved_038", ctypes.c_uint64),
    ]

    magic: bytes
    version: int
    slots: int
    entry: int
    vectors: int
    pool_pages: int
    arena_pages: int
    window_pages: int
    records: int
    reserved_038: int


check_offsets(_Header, 0x40, {"slots": 0x0C, "entry": 0x10, "pool_pages": 0x20, "window_pages": 0x30, "records": 0x34})

#: these two stand in the information page, too
LAYOUT_MAGIC = b"VEILENCL"
LAYOUT_VERSION = 2
_RECORD = struct.Struct("<IIQQ48s")
MEASUREMENT_BYTES = 48


class Record(NamedTuple):
    """Pages of one kind and protection, one after the other."""

    kind: RecordKind
    prot: Prot
    va: int
    pages: int
    digest: bytes = bytes(MEASUREMENT_BYTES)
    """SHA-384 of the content; zeros for ZERO."""

    @property
    def end(self) -> int:
        """Behind its last byte."""
        return self.va + self.pages * PAGE_SIZE

    @classmethod
    def content(cls, prot: Prot, va: int, content: bytes) -> Record:
        """Of whole pages."""
        return cls(RecordKind.CONTENT, prot, va, len(content) // PAGE_SIZE, hashlib.sha384(content).digest())


@dataclass(frozen=True)
class Layout:
    """What an enclave is: all that is measured, and nothing else. Construction raises FormatError for what cannot be.

    Slots' areas, windows, IDT, GDTs and TSSs, and the information page follow from the numbers and are no records.
    """

    entry: int
    """Where each slot begins, with its number in RDI and RSP at the top of its stack."""
    vectors: int
    """The handler of vector v is at vectors + 16 * v."""
    slots: int
    """Threads, 1 to 64."""
    pool_pages: int
    """Pages that the runtime may have mapped while it runs."""
    arena_pages: int
    """Of address space from `ARENA` on."""
    records: Sequence[Record] = field(default_factory=tuple)
    """In ascending order, apart from each other."""
    window_pages: int = WINDOW_STRIDE // PAGE_SIZE
    """Of each slot's window: 2 to 64."""

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_records(self.records, [*fixed_areas(), (ARENA, ARENA + self.arena_pages * PAGE_SIZE)])
        for what, start, length in (("entry", self.entry, 1), ("vectors", self.vectors, _VECTORS * VECTOR_STRIDE)):
            if not any(_holds_code(record, start, length) for record in self.records):
                raise FormatError(f"the {what} at {start:#x} of an enclave is not in a record of code")

    def pack(self) -> bytes:
        """As it stands in an image, and is measured."""
        header = _Header(
            magic=LAYOUT_MAGIC, version=LAYOUT_VERSION, slots=self.slots, entry=self.entry, vectors=self.vectors,
            pool_pages=self.pool_pages, arena_pages=self.arena_pages, window_pages=self.window_pages,
            records=len(self.records),
        )  # fmt: skip
        return bytes(header) + b"".join(_RECORD.pack(*record) for record in self.records)

    @classmethod
    def parse(cls, data: bytes) -> Layout:
        """Raises FormatError for anything that `pack` does not give."""
        if len(data) < ctypes.sizeof(_Header):
            raise FormatError(f"an enclave's layout is cut short: {len(data)} bytes")
        header = _Header.from_buffer_copy(data)
        if header.magic != LAYOUT_MAGIC or header.version != LAYOUT_VERSION or header.reserved_038:
            raise FormatError(f"this is not an enclave's layout of version {LAYOUT_VERSION}: build the enclave again")
        if header.records > MAX_RECORDS or len(data) != ctypes.sizeof(_Header) + header.records * _RECORD.size:
            raise FormatError(f"an enclave's layout of {len(data)} bytes says that it has {header.records} records")
        return cls(
            header.entry, header.vectors, header.slots, header.pool_pages, header.arena_pages,
            tuple(_parse_records(data[ctypes.sizeof(_Header) :])), header.window_pages,
        )  # fmt: skip

    @property
    def measurement(self) -> bytes:
        """SHA-384 of the packed layout: 48 bytes, which stand for everything that the enclave holds at its start."""
        return hashlib.sha384(self.pack()).digest()

    @property
    def zero_pages(self) -> int:
        """Pages of its ZERO records."""
        return sum(record.pages for record in self.records if record.kind is RecordKind.ZERO)


def fixed_areas() -> list[tuple[int, int]]:
    """(first address, address behind the last) of what no record may be in: the service makes what is there."""
    return [
        (WINDOW, WINDOW + MAX_SLOTS * WINDOW_STRIDE),
        (THREADS, THREADS + MAX_SLOTS * THREAD_STRIDE),
        (SYSTEM, INFO + PAGE_SIZE),
    ]


def _parse_records(data: bytes) -> Iterator[Record]:
    for kind, prot, va, pages, digest in _RECORD.iter_unpack(data):
        if kind not in set(RecordKind) or prot > Prot.R | Prot.W | Prot.X:
            raise FormatError(f"a record at {va:#x} of an enclave has kind {kind} and protection {prot:#x}")
        yield Record(RecordKind(kind), Prot(prot), va, pages, digest)


def _check_numbers(layout: Layout) -> None:
    if not 1 <= layout.slots <= MAX_SLOTS:
        raise FormatError(f"an enclave has 1 to {MAX_SLOTS} slots, not {layout.slots}")
    if not 0 <= layout.pool_pages <= MAX_PAGES:
        raise FormatError(f"an enclave's pool has {MAX_PAGES} pages at most, not {layout.pool_pages}")
    if not 0 <= layout.arena_pages <= _MAX_ARENA_PAGES:
        raise FormatError(f"an enclave's arena has {_MAX_ARENA_PAGES} pages at most, not {layout.arena_pages}")
    if not 2 <= layout.window_pages <= WINDOW_STRIDE // PAGE_SIZE:
        raise FormatError(f"a window has 2 to {WINDOW_STRIDE // PAGE_SIZE} pages, not {layout.window_pages}")


def _check_records(records: Sequence[Record], taken: Iterable[tuple[int, int]]) -> None:
    if not 1 <= len(records) <= MAX_RECORDS:
        raise FormatError(f"an enclave has 1 to {MAX_RECORDS} records, not {len(records)}")
    # The first page stays free: a null pointer is a fault.
    end, pages = PAGE_SIZE, 0
    for record in records:
        pages += record.pages
        if record.va % PAGE_SIZE or record.pages < 1 or pages > MAX_PAGES or record.va < end or record.end > TOP:
            raise FormatError(
                f"the record at {record.va:#x} with {record.pages} pages of an enclave is not of whole pages behind "
                f"the one before, below {TOP:#x}, and of no more than {MAX_PAGES} pages with it"
            )
        if not record.prot & Prot.R:
            raise FormatError(f"the record at {record.va:#x} of an enclave cannot be read")
        if len(record.digest) != MEASUREMENT_BYTES or (record.kind is RecordKind.ZERO and any(record.digest)):
            raise FormatError(f"the record at {record.va:#x} of an enclave has no right digest")
        end = record.end
    for first, behind in taken:
        for record in records:
            if record.va < behind and first < record.end:
                raise FormatError(f"the record at {record.va:#x} of an enclave is where something else is")


def _holds_code(record: Record, start: int, length: int) -> bool:
    return (
        record.kind is RecordKind.CONTENT
        and bool(record.prot & Prot.X)
        and record.va <= start
        and start + length <= record.end
    )
