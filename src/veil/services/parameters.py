# SPDX-License-Identifier: GPL-2.0-or-later
"""The services' parameters: one measured page that says where everything is, and how each service is to behave."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from veil.formats.errors import FormatError
from veil.formats.offsets import check_offsets
from veil.formats.page_sizes import PAGE_SIZE

__all__ = ["MAX_SETTINGS", "KernelSegment", "ServiceParameters", "pack_settings"]

_MAGIC = 0x5652455300564C53  # "SLV\0SERV", little-endian
_VERSION = 1
#: bytes, for all services together
MAX_SETTINGS = 3072
_MAX_SEGMENTS = 8


class KernelSegment(NamedTuple):
    """A piece of the kernel's image as it is launched: `size` bytes, zeros behind them."""

    virtual: int
    gpa: int
    size: int


class _Segment(ctypes.LittleEndianStructure):
    _pack_ = 1
    _fields_ = [("virtual", ctypes.c_uint64), ("gpa", ctypes.c_uint64), ("size", ctypes.c_uint64)]

    virtual: int
    gpa: int
    size: int


class ServiceParameters(ctypes.LittleEndianStructure):
    """All addresses are in the services' region. `blocks_gpa`: a page with {u64 GPA, u64 size} of each VCPU's request
    block in the kernel's memory, which VeilMon fills in. `settings`: JSON, an object for each service by name.
    `kernel_copy_gpa`: where the services keep the kernel as it is launched, segment after segment, each at the start of
    a page; 0 if they keep no copy.
    """

    _pack_ = 1
    _fields_ = [
        ("magic", ctypes.c_uint64),
        ("version", ctypes.c_uint32),
        ("vcpus", ctypes.c_uint32),
        ("mailbox_gpa", ctypes.c_uint64),
        ("mailbox_size", ctypes.c_uint64),
        ("blocks_gpa", ctypes.c_uint64),
        ("memory_gpa", ctypes.c_uint64),
        ("memory_size", ctypes.c_uint64),
        ("settings_length", ctypes.c_uint64),
        ("_settings", ctypes.c_uint8 * MAX_SETTINGS),
        ("kernel_copy_gpa", ctypes.c_uint64),
        ("_kernel", _Segment * _MAX_SEGMENTS),
    ]

    magic: int
    version: int
    vcpus: int
    mailbox_gpa: int
    mailbox_size: int
    blocks_gpa: int
    memory_gpa: int
    memory_size: int
    settings_length: int
    kernel_copy_gpa: int

    @classmethod
    def make(
        cls, settings: dict[str, dict[str, Any]], kernel: Sequence[KernelSegment] = (), **fields: int
    ) -> ServiceParameters:
        """Parameters from addresses and settings; `kernel` has the segments that are copied. Raises FormatError."""
        text = pack_settings(settings)
        made = cls(magic=_MAGIC, version=_VERSION, settings_length=len(text), **fields)
        if len(kernel) > _MAX_SEGMENTS:
            raise FormatError(f"a kernel has {_MAX_SEGMENTS} segments at most, not {len(kernel)}")
        for number, segment in enumerate(kernel):
            made._kernel[number] = _Segment(*segment)
        made._settings[: len(text)] = list(text)
        return made

    @classmethod
    def parse(cls, data: bytes) -> ServiceParameters:
        """The parameters in a page; raises FormatError."""
        if len(data) < ctypes.sizeof(cls):
            raise FormatError(f"the services' parameters are cut short: {len(data)} bytes")
        found = cls.from_buffer_copy(data)
        if found.magic != _MAGIC or found.version != _VERSION or found.settings_length > MAX_SETTINGS:
            raise FormatError("the services' parameters are not of this version")
        numbers = (
            found.mailbox_gpa, found.mailbox_size, found.blocks_gpa, found.memory_gpa, found.memory_size,
            found.kernel_copy_gpa, *(segment.gpa for segment in found.kernel),
        )  # fmt: skip
        if any(number % PAGE_SIZE for number in numbers) or not 1 <= found.vcpus <= PAGE_SIZE // 16:
            raise FormatError("the services' parameters name ranges that are not whole pages")
        return found

    @property
    def kernel(self) -> tuple[KernelSegment, ...]:
        """What is copied."""
        segments = (KernelSegment(item.virtual, item.gpa, item.size) for item in self._kernel)
        return tuple(segment for segment in segments if segment.size)

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """By service."""
        found: dict[str, dict[str, Any]] = json.loads(bytes(self._settings[: self.settings_length]))
        return found


def pack_settings(settings: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The settings of all services together, as JSON; raises FormatError if they do not fit into the page."""
    text = json.dumps({name: dict(own) for name, own in settings.items()}, sort_keys=True).encode()
    if len(text) > MAX_SETTINGS:
        sizes = ", ".join(f"{name} {len(json.dumps(dict(own)))}" for name, own in sorted(settings.items()))
        raise FormatError(
            f"the services' settings have {len(text)} bytes together, at most {MAX_SETTINGS} fit: {sizes}"
        )
    return text


check_offsets(
    ServiceParameters,
    0xD08,
    {"mailbox_gpa": 0x10, "blocks_gpa": 0x20, "memory_gpa": 0x28, "_settings": 0x40, "kernel_copy_gpa": 0xC40},
)
