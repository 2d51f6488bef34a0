# SPDX-License-Identifier: GPL-2.0-or-later
"""Enclaves: what the builder, VeilS-ENC, the driver and the runtime inside must see in the same way.

Where everything is in an enclave's address space; the layout, from which the measurement follows; and the three pages
by which the runtime speaks: the window's block (to the starter, untrusted), the mailbox (to the service, private), and
the information page (from the service). `guest/enclaves/abi.h` says the same in C, and a test compares them.
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
    "INFO_CPUID",
    "INFO_CPUID_ENTRIES",
    "MAILBOX_DATA",
    "MAILBOX_PENDING",
    "MAX_PAGES",
    "MAX_RECORDS",
    "MAX_SLOTS",
    "RUNTIME",
    "START_MAGIC",
    "SYSTEM",
    "SYSTEM_STRIDE",
    "THREADS",
    "THREAD_PAGES",
    "THREAD_STRIDE",
    "TOP",
    "VECTOR_STRIDE",
    "WINDOW",
    "WINDOW_STRIDE",
    "InfoPage",
    "Layout",
    "Mailbox",
    "MailboxCall",
    "Prot",
    "Record",
    "RecordKind",
    "Stack",
    "StartBlock",
    "ThreadPart",
    "WindowBlock",
    "WindowState",
    "fixed_areas",
    "vector_stack",
]

# The address space. Each is the first address of an area; slot n has its own part `n * ..._STRIDE` further on.

#: What the program maps by mmap: only address space, until the service puts pages of the pool there.
ARENA = 0x1000_0000_0000
#: The window of a slot: memory that the enclave and its process share, at the same address in both. The first page
#: begins with `WindowBlock`, the rest is for what system calls read and write.
WINDOW = 0x6000_0000_0000
WINDOW_STRIDE = 0x4_0000
#: The runtime's code and data: records of the layout.
RUNTIME = 0x7000_0000_0000
#: What a slot (a thread) has of its own: `ThreadPart`. Aligned to its stride: any stack pointer leads there.
THREADS = 0x7100_0000_0000
THREAD_STRIDE = 0x1_0000
THREAD_PAGES = THREAD_STRIDE // PAGE_SIZE
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
    """Offsets in a slot's area, in bytes. Stacks grow down from theirs."""

    CONTROL = 0x0
    """The runtime's own data of this thread: one page. Its first words are the runtime's to lay out."""
    IST1_TOP = 0x5000
    """16 KiB."""
    IST2_TOP = 0x7000
    """8 KiB."""
    IST3_TOP = 0x9000
    """8 KiB."""
    STACK_TOP = 0xF000
    """24 KiB: RSP when the slot is entered for the first time."""
    MAILBOX = 0xF000
    """`Mailbox`."""


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

_MAGIC = b"VEILENCL"
_VERSION = 1
_RECORD = struct.Struct("<IIQQ48s")
_DIGEST = 48


class Record(NamedTuple):
    """Pages of one kind and protection, one after the other."""

    kind: RecordKind
    prot: Prot
    va: int
    pages: int
    digest: bytes = bytes(_DIGEST)
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
            magic=_MAGIC, version=_VERSION, slots=self.slots, entry=self.entry, vectors=self.vectors,
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
        if header.magic != _MAGIC or header.version != _VERSION or header.reserved_038:
            raise FormatError("this is not an enclave's layout of version 1")
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
        if len(record.digest) != _DIGEST or (record.kind is RecordKind.ZERO and any(record.digest)):
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


# The window's block: untrusted memory.


class WindowState(enum.IntEnum):
    """What the enclave wants of its process."""

    IDLE = 0
    """Nothing: it was interrupted, or may run. Whoever serves a request puts this, and enters again."""
    SYSCALL = 1
    """`nr` and `args`, to be done as they stand; pointers point into the window. The answer is `result`."""
    SERVICE = 2
    """The mailbox has a request: the driver has VeilS-ENC serve it."""
    THREAD_EXIT = 3
    """The thread of this slot has ended."""
    EXIT = 4
    """The program has ended with the exit status args[0]; or by the signal args[1], if that is not 0."""
    SPAWN = 5
    """A thread is to enter the slot args[0]; `result` is 0 or a negative error number."""
    INTERRUPT = 6
    """The program of the slot args[0] is to come to its runtime, which has a signal for it; `result` is 0."""


class WindowBlock(ctypes.LittleEndianStructure):
    """The start of a window. Enclave, process and kernel write it at any time."""

    _pack_ = 1
    _fields_ = [
        ("state", ctypes.c_uint32),
        ("interrupt", ctypes.c_uint32),
        ("nr", ctypes.c_uint64),
        ("args", ctypes.c_uint64 * 6),
        ("result", ctypes.c_int64),
        ("signals", ctypes.c_uint64),
    ]

    state: int
    interrupt: int
    """Not 0: the runtime is to look for signals, also when the program makes no system call. It puts 0."""
    nr: int
    args: ctypes.Array[ctypes.c_uint64]
    result: int
    """Of a system call; -512 (ERESTARTSYS): it has not begun, for a signal came."""
    signals: int
    """Those that the process got for the program, signal n as bit n - 1. The runtime takes out what it may pass on."""


check_offsets(WindowBlock, 0x50, {"interrupt": 0x04, "nr": 0x08, "args": 0x10, "result": 0x40, "signals": 0x48})


class StartBlock(ctypes.LittleEndianStructure):
    """What the process passes to the program, at the second page of slot 0's window before it is entered. Untrusted.

    Behind it are `bytes` bytes: the arguments and then the environment, each text with its NUL.
    """

    _pack_ = 1
    _fields_ = [
        ("magic", ctypes.c_uint64),
        ("arguments", ctypes.c_uint32),
        ("environment", ctypes.c_uint32),
        ("bytes", ctypes.c_uint32),
        ("reserved_014", ctypes.c_uint32),
    ]


check_offsets(StartBlock, 0x18, {"arguments": 0x08, "environment": 0x0C, "bytes": 0x10})
#: "VEILARGS", little-endian
START_MAGIC = int.from_bytes(b"VEILARGS", "little")

# The mailbox: memory of the enclave's, which the service reaches too.

#: `Mailbox.status` as the runtime leaves it: what is still there after a return was not served.
MAILBOX_PENDING = 0xFFFF_FFFF
#: where its data begin
MAILBOX_DATA = 0x40


class MailboxCall(enum.IntEnum):
    """What the runtime asks VeilS-ENC. Statuses are `veil.formats.status.Status`."""

    MAP = 1
    """args: address, pages (4096 at most), `Prot` with R. Zeroed pages of the pool. FULL if it has too few, BAD_REQUEST
    if one of the pages is mapped already or it is a place of the service's; then nothing is done."""
    UNMAP = 2
    """args: address, pages. What is mapped there goes back to the pool, records' pages too. `result`: how many."""
    PROTECT = 3
    """args: address, pages, `Prot`; NONE keeps content that cannot be reached. `result`: how many pages were mapped."""
    LOG = 4
    """args: length. Data: a line of text, for the protected log."""
    SECRET = 5
    """args: length. Data: a name; answered by the secret of that name, `result` bytes. UNAVAILABLE: there is none."""
    REPORT = 6
    """Data: 64 bytes of the enclave's choice; answered by a statement of `result` bytes."""
    KEY = 7
    """args: length. Data: a label; answered by 32 bytes that only an enclave of this measurement gets."""
    TIME = 8
    """`result`: the machine's time in nanoseconds, from any point; it never goes back."""
    FAULT = 9
    """`result`: CR2 of the slot, which at CPL 3 nobody can read: the address of its last page fault.

    args: an area that has no pages (address, pages, `Prot` with R), or none (pages 0). If CR2 is in it, pages of the
    pool are mapped around it, as by MAP. Data: u64 address, u64 pages of what was mapped; or zeros."""


class Mailbox(ctypes.LittleEndianStructure):
    """One page. The runtime writes PENDING as `status`, has the service run, and believes nothing before it changes."""

    _pack_ = 1
    _fields_ = [
        ("call", ctypes.c_uint32),
        ("status", ctypes.c_uint32),
        ("args", ctypes.c_uint64 * 6),
        ("result", ctypes.c_uint64),
        ("data", ctypes.c_uint8 * (PAGE_SIZE - MAILBOX_DATA)),
    ]


check_offsets(Mailbox, PAGE_SIZE, {"status": 0x04, "args": 0x08, "result": 0x38, "data": MAILBOX_DATA})

# The information page.

#: where the answers to CPUID begin: entries as in the CPUID page of a launch
INFO_CPUID = 0x100
INFO_CPUID_ENTRIES = 64
_CPUID_ENTRY = 0x30


class InfoPage(ctypes.LittleEndianStructure):
    """What the service tells an enclave of itself and of its machine."""

    _pack_ = 1
    _fields_ = [
        ("magic", ctypes.c_char * 8),
        ("version", ctypes.c_uint32),
        ("slots", ctypes.c_uint32),
        ("window_pages", ctypes.c_uint32),
        ("cpuid_entries", ctypes.c_uint32),
        ("tsc_khz", ctypes.c_uint64),
        ("enclave", ctypes.c_uint64),
        ("pool_pages", ctypes.c_uint64),
        ("arena_pages", ctypes.c_uint64),
        ("reserved_038", ctypes.c_uint64),
        ("measurement", ctypes.c_uint8 * _DIGEST),
        ("reserved_070", ctypes.c_uint8 * (INFO_CPUID - 0x70)),
        ("cpuid", ctypes.c_uint8 * (INFO_CPUID_ENTRIES * _CPUID_ENTRY)),
        ("reserved_d00", ctypes.c_uint8 * (PAGE_SIZE - INFO_CPUID - INFO_CPUID_ENTRIES * _CPUID_ENTRY)),
    ]

    magic: bytes
    version: int
    slots: int
    window_pages: int
    cpuid_entries: int
    tsc_khz: int
    enclave: int
    """The number that the service gave it; the next one's is another."""
    pool_pages: int
    arena_pages: int
    measurement: ctypes.Array[ctypes.c_uint8]
    cpuid: ctypes.Array[ctypes.c_uint8]

    @classmethod
    def of(cls, layout: Layout, enclave: int, tsc_khz: int, cpuid: bytes) -> InfoPage:
        """`cpuid`: entries of 0x30 bytes, 64 at most."""
        page = cls(
            magic=_MAGIC, version=_VERSION, slots=layout.slots, window_pages=layout.window_pages,
            cpuid_entries=len(cpuid) // _CPUID_ENTRY, tsc_khz=tsc_khz, enclave=enclave, pool_pages=layout.pool_pages,
            arena_pages=layout.arena_pages,
        )  # fmt: skip
        page.measurement[:] = list(layout.measurement)
        page.cpuid[: len(cpuid)] = list(cpuid)
        return page


check_offsets(InfoPage, PAGE_SIZE, {"tsc_khz": 0x18, "enclave": 0x20, "measurement": 0x40, "cpuid": INFO_CPUID})
