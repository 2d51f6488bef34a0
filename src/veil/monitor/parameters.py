# SPDX-License-Identifier: GPL-2.0-or-later
"""The monitor's parameters: one measured page of the image that says where everything is."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from veil.monitor.errors import MonitorError, Reason

__all__ = ["MonitorParameters", "Range"]

_MAGIC = 0x4E4F4D4C49455600  # "\0VEILMON", little-endian
_VERSION = 1
_MAX_RAM = 4
_MAX_LAUNCHED = 96
_PAGE = 4096


class Range(ctypes.LittleEndianStructure):
    """A range of guest-physical memory, in bytes."""

    _pack_ = 1
    _fields_ = [("gpa", ctypes.c_uint64), ("size", ctypes.c_uint64)]

    gpa: int
    size: int


class MonitorParameters(ctypes.LittleEndianStructure):
    """Offsets are fixed: the image builder and the monitor may be of different builds.

    `launched` are the ranges that the secure processor validated at launch. `guest_*` pages lie in memory of VMPL 3.
    """

    _pack_ = 1
    _fields_ = [
        ("magic", ctypes.c_uint64),
        ("version", ctypes.c_uint32),
        ("vcpus", ctypes.c_uint32),
        ("ram_count", ctypes.c_uint32),
        ("launched_count", ctypes.c_uint32),
        ("monitor", Range),
        ("services", Range),
        ("header_gpa", ctypes.c_uint64),
        ("secrets_gpa", ctypes.c_uint64),
        ("cpuid_gpa", ctypes.c_uint64),
        ("ghcb_gpa", ctypes.c_uint64),
        ("monitor_vmsas_gpa", ctypes.c_uint64),
        ("template_gpa", ctypes.c_uint64),
        ("guest_vmsa_gpa", ctypes.c_uint64),
        ("guest_secrets_gpa", ctypes.c_uint64),
        ("guest_cpuid_gpa", ctypes.c_uint64),
        ("guest_caa_gpa", ctypes.c_uint64),
        ("ram", Range * _MAX_RAM),
        ("launched", Range * _MAX_LAUNCHED),
    ]

    version: int
    vcpus: int
    ram_count: int
    launched_count: int
    monitor: Range
    services: Range
    header_gpa: int
    secrets_gpa: int
    cpuid_gpa: int
    ghcb_gpa: int
    monitor_vmsas_gpa: int
    template_gpa: int
    guest_vmsa_gpa: int
    guest_secrets_gpa: int
    guest_cpuid_gpa: int
    guest_caa_gpa: int

    @classmethod
    def make(
        cls,
        *,
        vcpus: int,
        ram: Sequence[tuple[int, int]],
        launched: Sequence[tuple[int, int]],
        monitor: tuple[int, int],
        services: tuple[int, int],
        **addresses: int,
    ) -> MonitorParameters:
        """Parameters from (GPA, size) pairs; `addresses` are the fields that end in `_gpa`."""
        if len(ram) > _MAX_RAM or len(launched) > _MAX_LAUNCHED:
            raise MonitorError(Reason.BAD_PARAMETERS, "too many memory ranges for the monitor's parameters")
        return cls(
            magic=_MAGIC,
            version=_VERSION,
            vcpus=vcpus,
            ram_count=len(ram),
            launched_count=len(launched),
            monitor=Range(*monitor),
            services=Range(*services),
            ram=(Range * _MAX_RAM)(*(Range(*item) for item in ram)),
            launched=(Range * _MAX_LAUNCHED)(*(Range(*item) for item in launched)),
            **addresses,
        )

    @classmethod
    def parse(cls, data: bytes) -> MonitorParameters:
        """The parameters in a page; raises MonitorError if they make no sense."""
        if len(data) < ctypes.sizeof(cls):
            raise MonitorError(Reason.BAD_PARAMETERS, "the monitor's parameters are cut short")
        self = cls.from_buffer_copy(data)
        if self.magic != _MAGIC or self.version != _VERSION:
            raise MonitorError(Reason.BAD_PARAMETERS, "the monitor's parameters are of another version")
        if not 1 <= self.vcpus <= 64 or not 1 <= self.ram_count <= _MAX_RAM or self.launched_count > _MAX_LAUNCHED:
            raise MonitorError(Reason.BAD_PARAMETERS, "the monitor's parameters count too much or nothing")
        for item in [self.monitor, self.services, *self.ram_ranges(), *self.launched_ranges()]:
            if item.gpa % _PAGE or item.size % _PAGE:
                raise MonitorError(Reason.BAD_PARAMETERS, f"a range at {item.gpa:#x} is not of whole pages")
        return self

    def ram_ranges(self) -> list[Range]:
        """All of RAM."""
        return list(self.ram[: self.ram_count])

    def launched_ranges(self) -> list[Range]:
        """What the launch validated."""
        return list(self.launched[: self.launched_count])

    magic: int
    ram: ctypes.Array[Range]
    launched: ctypes.Array[Range]


assert ctypes.sizeof(MonitorParameters) <= _PAGE
