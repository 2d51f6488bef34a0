# SPDX-License-Identifier: GPL-2.0-or-later
"""The monitor's parameters: one measured page of the image that says where everything is."""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Iterable, Sequence

from veil.monitor.errors import MonitorError, Reason
from veil.snp.layouts import check_offsets

__all__ = ["MonitorParameters", "Option", "Range"]

_MAGIC = 0x4E4F4D4C49455600  # "\0VEILMON", little-endian
_VERSION = 1
_MAX_RAM = 4
_MAX_LAUNCHED = 96
_MAX_VCPUS = 64
_PAGE = 4096
_TOP = 1 << 51

_OWN_PAGES = ("header_gpa", "secrets_gpa", "cpuid_gpa", "ghcb_gpa", "template_gpa")
_GUEST_PAGES = ("guest_secrets_gpa", "guest_cpuid_gpa", "guest_caa_gpa")


class Option(enum.IntFlag):
    """Measured like everything else here: who verifies the launch digest knows what was chosen."""

    NONE = 0
    UNPROTECTED = 1
    """VMPL 3 gets all permissions on the monitor's and the services' pages, too. For tests that show that it is the
    permissions that stop an attack."""


_OPTIONS = int(Option.UNPROTECTED)


class Range(ctypes.LittleEndianStructure):
    """A range of guest-physical memory, in bytes."""

    _pack_ = 1
    _fields_ = [("gpa", ctypes.c_uint64), ("size", ctypes.c_uint64)]

    gpa: int
    size: int

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.gpa + self.size

    def overlaps(self, other: Range) -> bool:
        """Do they share a byte?"""
        return self.gpa < other.end and other.gpa < self.end

    def contains(self, gpa: int, size: int) -> bool:
        """Does the other range lie in this one?"""
        return self.gpa <= gpa and gpa + size <= self.end


class MonitorParameters(ctypes.LittleEndianStructure):
    """Offsets are fixed: the image builder and the monitor may be of different builds.

    `launched` are the ranges that the secure processor validated at launch. `monitor` is VMPL 0's own region, which
    holds the pages of `header_gpa` to `template_gpa` and, from `monitor_vmsas_gpa` on, one page for each VCPU but the
    first; `services` belongs to VMPL 0 and 1. The pages from `guest_secrets_gpa` on are memory of VMPL 3;
    `guest_vmsa_gpa` may be in its memory or the monitor's.
    """

    _pack_ = 1
    _fields_ = [
        ("magic", ctypes.c_uint64),
        ("version", ctypes.c_uint32),
        ("vcpus", ctypes.c_uint32),
        ("ram_count", ctypes.c_uint32),
        ("launched_count", ctypes.c_uint32),
        ("options", ctypes.c_uint64),
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

    magic: int
    version: int
    vcpus: int
    ram_count: int
    launched_count: int
    options: int
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
    ram: ctypes.Array[Range]
    launched: ctypes.Array[Range]

    @classmethod
    def make(
        cls,
        *,
        vcpus: int,
        ram: Sequence[tuple[int, int]],
        launched: Sequence[tuple[int, int]],
        monitor: tuple[int, int],
        services: tuple[int, int],
        options: Option = Option.NONE,
        **addresses: int,
    ) -> MonitorParameters:
        """Parameters from (GPA, size) pairs; `addresses` are the fields that end in `_gpa`."""
        if len(ram) > _MAX_RAM or len(launched) > _MAX_LAUNCHED:
            raise _bad(f"{len(ram)} and {len(launched)} memory ranges are more than {_MAX_RAM} and {_MAX_LAUNCHED}")
        return cls(
            magic=_MAGIC,
            version=_VERSION,
            vcpus=vcpus,
            ram_count=len(ram),
            launched_count=len(launched),
            options=options,
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
            raise _bad(f"cut short: {len(data)} bytes")
        self = cls.from_buffer_copy(data)
        if self.magic != _MAGIC or self.version != _VERSION:
            raise _bad("not of this version")
        if not 1 <= self.vcpus <= _MAX_VCPUS or not 1 <= self.ram_count <= _MAX_RAM:
            raise _bad(f"{self.vcpus} VCPUs or {self.ram_count} ranges of RAM")
        if self.launched_count > _MAX_LAUNCHED or self.options & ~_OPTIONS:
            raise _bad(f"{self.launched_count} launched ranges or options {self.options:#x}")
        self._check_ranges()
        self._check_pages()
        return self

    def _check_ranges(self) -> None:
        ram = self.ram_ranges()
        for item in [self.monitor, self.services, *ram, *self.launched_ranges()]:
            if item.gpa % _PAGE or item.size % _PAGE or item.end > _TOP:
                raise _bad(f"the range {item.gpa:#x}+{item.size:#x} is not one of whole pages")
        if not self.monitor.size or any(not item.size for item in ram):
            raise _bad("an empty region")
        for item in (self.monitor, self.services):
            if item.size and not _inside(ram, item.gpa, item.size):
                raise _bad(f"the region {item.gpa:#x}+{item.size:#x} is not in RAM")
        if self.monitor.overlaps(self.services) and self.services.size:
            raise _bad("the monitor's and the services' regions overlap")

    def _check_pages(self) -> None:
        vmsas = (self.vcpus - 1) * _PAGE
        for name, size in [*((name, _PAGE) for name in _OWN_PAGES), ("monitor_vmsas_gpa", vmsas)]:
            gpa = getattr(self, name)
            if gpa % _PAGE or not self.monitor.contains(gpa, size):
                raise _bad(f"{name} {gpa:#x} is no page of the monitor's region")
        guest = [getattr(self, name) for name in _GUEST_PAGES]
        pages = [*guest, self.guest_vmsa_gpa]
        if len(set(pages)) != len(pages):
            raise _bad("two of the kernel's pages are the same")
        for gpa in pages:
            if gpa % _PAGE or not _inside(self.ram_ranges(), gpa, _PAGE):
                raise _bad(f"the kernel's page {gpa:#x} is no page of RAM")
            mine = self.monitor.contains(gpa, _PAGE) and gpa != self.guest_vmsa_gpa
            if mine or self.services.contains(gpa, _PAGE):
                raise _bad(f"the kernel's page {gpa:#x} is in a protected region")

    def ram_ranges(self) -> list[Range]:
        """All of RAM."""
        return list(self.ram[: self.ram_count])

    def launched_ranges(self) -> list[Range]:
        """What the launch validated."""
        return list(self.launched[: self.launched_count])


def _bad(what: str) -> MonitorError:
    return MonitorError(Reason.BAD_PARAMETERS, f"the monitor's parameters are unusable: {what}")


def _inside(ranges: Iterable[Range], gpa: int, size: int) -> bool:
    return any(item.contains(gpa, size) for item in ranges)


check_offsets(
    MonitorParameters,
    0x6D0,
    {"options": 0x18, "monitor": 0x20, "header_gpa": 0x40, "guest_vmsa_gpa": 0x70, "ram": 0x90, "launched": 0xD0},
)
