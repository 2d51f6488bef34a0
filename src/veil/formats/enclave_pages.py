# SPDX-License-Identifier: GPL-2.0-or-later
"""The three pages by which an enclave's runtime speaks while it runs: the window's block (to the starter, untrusted),
the mailbox (to the service, private), and the information page (from the service).

Where they are says `enclaves`. `guest/enclaves/abi.h` says the same in C, and a test compares them.
"""

from __future__ import annotations

import ctypes
import enum

from veil.formats.enclaves import LAYOUT_MAGIC, LAYOUT_VERSION, MEASUREMENT_BYTES, Layout
from veil.formats.offsets import check_offsets
from veil.formats.page_sizes import PAGE_SIZE

__all__ = [
    "INFO_CPUID",
    "INFO_CPUID_ENTRIES",
    "MAILBOX_DATA",
    "MAILBOX_PENDING",
    "MOST_STRINGS",
    "MOST_TEXT",
    "START_MAGIC",
    "EndReason",
    "InfoPage",
    "Mailbox",
    "MailboxCall",
    "StartBlock",
    "WindowBlock",
    "WindowState",
]

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
    """It has ended with the exit status args[0]; or by the signal args[1], if that is not 0. args[2]: `EndReason`."""
    SPAWN = 5
    """A thread is to enter the slot args[0]; `result` is 0 or a negative error number."""
    INTERRUPT = 6
    """The program of the slot args[0] is to come to its runtime, which has a signal for it; `result` is 0."""
    PROGRAM = 7
    """A child process is to do args[1] system calls, which are at args[0] in the window; the last is execve or
    exit_group. `result` is its number, or a negative error number if one of the calls failed."""


class EndReason(enum.IntEnum):
    """Why an enclave ends, for people outside: what nobody believes."""

    PROGRAM = 0
    """The program wants it."""
    RUNTIME = 1
    """Its runtime ends it: it was attacked, or called what the manifest ends it for. A line is in the protected log."""
    TOO_BIG = 2
    """The arguments and variables are more than `MOST_STRINGS` or `MOST_TEXT`, or have no room on the stack."""


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
#: arguments that a program can have, and variables; bytes of both from outside
MOST_STRINGS, MOST_TEXT = 2048, 128 << 10
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
    FILL = 10
    """args: address, pages (4096 at most), `Prot` with R, address of as many pages that can be read now. As MAP, with a
    copy of these: no thread finds them there without it."""


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
        ("measurement", ctypes.c_uint8 * MEASUREMENT_BYTES),
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
            magic=LAYOUT_MAGIC, version=LAYOUT_VERSION, slots=layout.slots, window_pages=layout.window_pages,
            cpuid_entries=len(cpuid) // _CPUID_ENTRY, tsc_khz=tsc_khz, enclave=enclave, pool_pages=layout.pool_pages,
            arena_pages=layout.arena_pages,
        )  # fmt: skip
        page.measurement[:] = list(layout.measurement)
        page.cpuid[: len(cpuid)] = list(cpuid)
        return page


check_offsets(InfoPage, PAGE_SIZE, {"tsc_khz": 0x18, "enclave": 0x20, "measurement": 0x40, "cpuid": INFO_CPUID})
