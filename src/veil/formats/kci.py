# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-KCI's formats: what the driver says of modules, on which the service relies for nothing but its own place."""

from __future__ import annotations

import enum
import struct
import uuid
from collections.abc import Mapping
from typing import NamedTuple

from veil.formats.errors import FormatError
from veil.formats.page_sizes import PAGE_SIZE

__all__ = [
    "FILE_PART",
    "KCI_GUID",
    "KCI_NAME",
    "KCI_NUMBER",
    "MAX_MODULE_MEMORY",
    "FilePart",
    "KernelCall",
    "MemoryType",
    "ModuleMemory",
    "ModulePrepared",
    "check_module_memory",
]

KCI_NAME = "kci"
KCI_NUMBER = 2
KCI_GUID = uuid.UUID("9f0c4c1d-6f4e-4c0e-8a57-3b1d6e2f7c02")

#: All memory of one module together, in bytes.
MAX_MODULE_MEMORY = 128 << 20


class KernelCall(enum.IntEnum):
    """What the driver asks."""

    LOCK_DOWN = 0
    """Nothing -> nothing. Once, from the measured init."""
    MODULE_FILE = 1
    """`FilePart`; by reference pages with the file from its offset on, whole pages. The file is what load_module()
    gets: not compressed, with its signature. -> nothing"""
    MODULE_PREPARED = 2
    """`FilePart`, `ModulePrepared`; by reference pages with the file from the offset on to its end, then the pages of
    the module's memory, type after type in the order of `MemoryType`. The module is COMING: its text is final. -> u32
    number of the module from now on"""
    MODULE_LIVE = 3
    """u32 number: its init function has returned, the init memory goes back to the kernel, and what is read-only after
    init is so. -> nothing"""
    MODULE_GONE = 4
    """u32 number: it is unloaded, or its init function failed. -> nothing"""


class MemoryType(enum.IntEnum):
    """enum mod_mem_type (include/linux/module.h)."""

    # As a key: enum's own hash is a function in Python.
    __hash__ = int.__hash__

    TEXT = 0
    DATA = 1
    RODATA = 2
    RO_AFTER_INIT = 3
    INIT_TEXT = 4
    INIT_DATA = 5
    INIT_RODATA = 6


class FilePart(NamedTuple):
    """A part of a module's file."""

    length: int
    """Of the whole file."""
    offset: int

    def pack(self) -> bytes:
        """Two u64."""
        return FILE_PART.pack(*self)

    @classmethod
    def parse(cls, body: bytes) -> FilePart:
        """Raises FormatError for another length."""
        if len(body) != FILE_PART.size:
            raise FormatError("a part of a module's file comes with its length and offset")
        return cls(*FILE_PART.unpack(body))

    @property
    def pages(self) -> int:
        """Of the file from the offset on."""
        return -(-(self.length - self.offset) // PAGE_SIZE)


class ModuleMemory(NamedTuple):
    """struct module_memory: where the kernel put what is of one type; whole pages."""

    address: int
    size: int

    @property
    def end(self) -> int:
        """After its last byte."""
        return self.address + self.size


_MEMORY_TYPES = tuple(MemoryType)
_PREPARED = struct.Struct("<Q14Q")
FILE_PART = struct.Struct("<QQ")


class ModulePrepared(NamedTuple):
    """Where the kernel says that it put a module: `struct module`'s mem[], and its per-CPU variables' offset."""

    percpu: int
    memory: Mapping[MemoryType, ModuleMemory]
    """Without types that have no memory."""

    def pack(self) -> bytes:
        """u64 percpu, then u64 address and u64 size for each `MemoryType`, zeros without memory."""
        nothing = ModuleMemory(0, 0)
        numbers = (number for kind in MemoryType for number in self.memory.get(kind, nothing))
        return _PREPARED.pack(self.percpu, *numbers)

    @classmethod
    def parse(cls, body: bytes) -> ModulePrepared:
        """Raises FormatError if it cannot be a module's memory: pieces of it overlap, or are not whole pages."""
        if len(body) != _PREPARED.size:
            raise FormatError(f"a module's memory is told in {_PREPARED.size} bytes, not {len(body)}")
        percpu, *numbers = _PREPARED.unpack(body)
        memory = {}
        for kind in _MEMORY_TYPES:
            address, size = numbers[2 * kind], numbers[2 * kind + 1]
            if address or size:
                memory[kind] = ModuleMemory(address, size)
        check_module_memory(memory)
        return cls(percpu, memory)


def check_module_memory(memory: Mapping[MemoryType, ModuleMemory]) -> None:
    """Raise FormatError unless all are whole pages below 2^64, apart from each other, and not too many."""
    end = total = 0
    for address, size in sorted(memory.values()):
        if not size or (address | size) % PAGE_SIZE or address + size > 1 << 64:
            raise FormatError(f"memory of a module at {address:#x}, {size:#x} bytes: not whole pages")
        if address < end:
            raise FormatError(f"memory of a module overlaps at {address:#x}")
        end = address + size
        total += size
    if total > MAX_MODULE_MEMORY:
        raise FormatError(f"a module has more than {MAX_MODULE_MEMORY} bytes of memory")
