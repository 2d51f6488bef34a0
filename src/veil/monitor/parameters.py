# SPDX-License-Identifier: GPL-2.0-or-later
"""The monitor's parameters: one measured page of the image that says where everything is."""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Iterable, Sequence

from veil.formats.board import C_BIT, MAX_VCPUS
from veil.formats.channel import ChannelArea
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.roles import Role
from veil.formats.service_domain import OUTBOX_SIZE
from veil.formats.termination import MonitorReason
from veil.monitor.errors import MonitorError
from veil.snp.layouts import check_offsets

__all__ = ["CERTIFICATE_PAGES", "MIN_SHARED", "MonitorParameters", "Option", "Range"]

_MAGIC = 0x4E4F4D4C49455600  # "\0VEILMON", little-endian
_VERSION = 4
_MAX_RAM = 4
_MAX_LAUNCHED = 96
_MAX_USERS = 8  # owners, and as many readers
_DIGEST = 32
_TOP = C_BIT

#: The shared area: a page for requests to the secure processor, one for responses, these for certificates (Linux takes
#: as many), then the channel's.
CERTIFICATE_PAGES = 4
_CHANNEL_AT = (2 + CERTIFICATE_PAGES) * PAGE_SIZE
MIN_SHARED = _CHANNEL_AT + ChannelArea(0).size

_OWN_PAGES = ("header_gpa", "secrets_gpa", "cpuid_gpa", "template_gpa")
_KERNEL_PAGES = ("kernel_secrets_gpa", "kernel_cpuid_gpa", "kernel_caa_gpa")


class Option(enum.IntFlag):
    """Measured like everything else here: who verifies the launch digest knows what was chosen."""

    NONE = 0
    UNPROTECTED = 1
    """VMPL 3 gets all permissions on the monitor's and the services' pages, too. For tests that show that it is the
    permissions that stop an attack."""
    KERNEL_VALIDATES = 2
    """What runs first at VMPL 3 is firmware, which validates its memory itself, by PVALIDATE of the core protocol, and
    takes memory that is validated already for an attack."""


_OPTIONS = int(Option.UNPROTECTED | Option.KERNEL_VALIDATES)


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
    holds the pages of `header_gpa` to `template_gpa`, from `monitor_vmsas_gpa` on one page for each VCPU but the first,
    from `ghcb_gpa` on one for each VCPU, and `shared`, which is shared with the host for guest messages and the
    channel; `services` belongs to VMPL 0 and 1. The pages from `kernel_secrets_gpa` on are memory of VMPL 3;
    `kernel_vmsa_gpa` may be in its memory or the monitor's.

    `service_code` is the part of `services` with the services' program, which begins with its header; it is empty if
    there are none. From `service_vmsas_gpa` on, in `monitor`, is a page for each VCPU; mailbox and `blocks_gpa` (one
    page) are in `services`.

    `cpuid_digest` is SHA-256 of the CPUID page. The launch digest does not cover that page's contents; this does.
    `owners` and `readers` are SHA-256 of the public keys (DER SubjectPublicKeyInfo) of the users who are owners and
    readers of this CVM (`veil.formats.roles`).
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
        ("kernel_vmsa_gpa", ctypes.c_uint64),
        ("kernel_secrets_gpa", ctypes.c_uint64),
        ("kernel_cpuid_gpa", ctypes.c_uint64),
        ("kernel_caa_gpa", ctypes.c_uint64),
        ("shared", Range),
        ("cpuid_digest", ctypes.c_uint8 * _DIGEST),
        ("service_code", Range),
        ("service_vmsas_gpa", ctypes.c_uint64),
        ("mailbox_gpa", ctypes.c_uint64),
        ("mailbox_size", ctypes.c_uint64),
        ("blocks_gpa", ctypes.c_uint64),
        ("owner_count", ctypes.c_uint64),
        ("owners", (ctypes.c_uint8 * _DIGEST) * _MAX_USERS),
        ("reader_count", ctypes.c_uint64),
        ("readers", (ctypes.c_uint8 * _DIGEST) * _MAX_USERS),
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
    kernel_vmsa_gpa: int
    kernel_secrets_gpa: int
    kernel_cpuid_gpa: int
    kernel_caa_gpa: int
    shared: Range
    cpuid_digest: ctypes.Array[ctypes.c_uint8]
    service_code: Range
    service_vmsas_gpa: int
    mailbox_gpa: int
    mailbox_size: int
    blocks_gpa: int
    owner_count: int
    owners: ctypes.Array[ctypes.Array[ctypes.c_uint8]]
    reader_count: int
    readers: ctypes.Array[ctypes.Array[ctypes.c_uint8]]
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
        shared: tuple[int, int],
        service_code: tuple[int, int] = (0, 0),
        cpuid_digest: bytes,
        owners: Sequence[bytes] = (),
        readers: Sequence[bytes] = (),
        options: Option = Option.NONE,
        **addresses: int,
    ) -> MonitorParameters:
        """Parameters from (GPA, size) pairs; `addresses` are the fields that end in `_gpa`."""
        if len(ram) > _MAX_RAM or len(launched) > _MAX_LAUNCHED:
            raise _bad(f"{len(ram)} and {len(launched)} memory ranges are more than {_MAX_RAM} and {_MAX_LAUNCHED}")
        if len(owners) > _MAX_USERS or len(readers) > _MAX_USERS:
            raise _bad(f"{len(owners)} owners and {len(readers)} readers, of at most {_MAX_USERS} each")
        if any(len(item) != _DIGEST for item in (*owners, *readers, cpuid_digest)):
            raise _bad(f"a digest that has not {_DIGEST} bytes")
        digest = ctypes.c_uint8 * _DIGEST
        return cls(
            magic=_MAGIC,
            version=_VERSION,
            vcpus=vcpus,
            ram_count=len(ram),
            launched_count=len(launched),
            options=options,
            monitor=Range(*monitor),
            services=Range(*services),
            shared=Range(*shared),
            service_code=Range(*service_code),
            cpuid_digest=digest(*cpuid_digest),
            owner_count=len(owners),
            owners=(digest * _MAX_USERS)(*(digest(*item) for item in owners)),
            reader_count=len(readers),
            readers=(digest * _MAX_USERS)(*(digest(*item) for item in readers)),
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
        if not 1 <= self.vcpus <= MAX_VCPUS or not 1 <= self.ram_count <= _MAX_RAM:
            raise _bad(f"{self.vcpus} VCPUs or {self.ram_count} ranges of RAM")
        if self.launched_count > _MAX_LAUNCHED or self.options & ~_OPTIONS:
            raise _bad(f"{self.launched_count} launched ranges or options {self.options:#x}")
        if self.owner_count > _MAX_USERS or self.reader_count > _MAX_USERS:
            raise _bad(f"{self.owner_count} owners and {self.reader_count} readers")
        self._check_ranges()
        self._check_pages()
        return self

    def _check_ranges(self) -> None:
        ram = self.ram_ranges()
        for item in [self.monitor, self.services, self.shared, *ram, *self.launched_ranges()]:
            if item.gpa % PAGE_SIZE or item.size % PAGE_SIZE or item.end > _TOP:
                raise _bad(f"the range {item.gpa:#x}+{item.size:#x} is not one of whole pages")
        if not self.monitor.size or any(not item.size for item in ram):
            raise _bad("an empty region")
        for item in (self.monitor, self.services):
            if item.size and not _inside(ram, item.gpa, item.size):
                raise _bad(f"the region {item.gpa:#x}+{item.size:#x} is not in RAM")
        if self.monitor.overlaps(self.services) and self.services.size:
            raise _bad("the monitor's and the services' regions overlap")

    def _check_pages(self) -> None:
        vmsas = (self.vcpus - 1) * PAGE_SIZE
        several = [("monitor_vmsas_gpa", vmsas), ("ghcb_gpa", self.vcpus * PAGE_SIZE)]
        for name, size in [*((name, PAGE_SIZE) for name in _OWN_PAGES), *several]:
            gpa = getattr(self, name)
            if gpa % PAGE_SIZE or not self.monitor.contains(gpa, size):
                raise _bad(f"{name} {gpa:#x} is not a page of the monitor's region")
        if not self.monitor.contains(self.shared.gpa, self.shared.size) or self.shared.size < MIN_SHARED:
            raise _bad(f"the shared area {self.shared.gpa:#x}+{self.shared.size:#x} is not in the monitor's region")
        if self.service_code.size:
            self._check_services()
        kernel = [getattr(self, name) for name in _KERNEL_PAGES]
        pages = [*kernel, self.kernel_vmsa_gpa]
        if len(set(pages)) != len(pages):
            raise _bad("two of the kernel's pages are the same")
        for gpa in pages:
            if gpa % PAGE_SIZE or not _inside(self.ram_ranges(), gpa, PAGE_SIZE):
                raise _bad(f"the kernel's page {gpa:#x} is not a page of RAM")
            mine = self.monitor.contains(gpa, PAGE_SIZE) and gpa != self.kernel_vmsa_gpa
            if mine or self.services.contains(gpa, PAGE_SIZE):
                raise _bad(f"the kernel's page {gpa:#x} is in a protected region")

    def ram_ranges(self) -> list[Range]:
        """All of RAM."""
        return list(self.ram[: self.ram_count])

    def _check_services(self) -> None:
        if (
            not self.monitor.contains(self.service_vmsas_gpa, self.vcpus * PAGE_SIZE)
            or self.service_vmsas_gpa % PAGE_SIZE
        ):
            raise _bad("the services' VMSAs are not in the monitor's region")
        parts = [self.service_code, Range(self.mailbox_gpa, self.mailbox_size), Range(self.blocks_gpa, PAGE_SIZE)]
        for number, part in enumerate(parts):
            if part.gpa % PAGE_SIZE or part.size % PAGE_SIZE or not self.services.contains(part.gpa, part.size):
                raise _bad(f"the services' range {part.gpa:#x}+{part.size:#x} is not in their region")
            if any(part.overlaps(other) for other in parts[:number]):
                raise _bad("the services' ranges overlap")
        if self.mailbox_size <= OUTBOX_SIZE:
            raise _bad("the services have no mailbox and outbox")

    @property
    def channel(self) -> ChannelArea:
        """Where the channel's rings are."""
        return ChannelArea(self.shared.gpa + _CHANNEL_AT)

    def roles(self) -> dict[bytes, Role]:
        """Users with a role beyond ANYONE, by SHA-256 of the public key. A reader who is an owner too is an owner."""
        readers = {bytes(item): Role.READER for item in self.readers[: self.reader_count]}
        return readers | {bytes(item): Role.OWNER for item in self.owners[: self.owner_count]}

    def launched_ranges(self) -> list[Range]:
        """What the launch validated."""
        return list(self.launched[: self.launched_count])


def _bad(what: str) -> MonitorError:
    return MonitorError(MonitorReason.BAD_PARAMETERS, f"the monitor's parameters are unusable: {what}")


def _inside(ranges: Iterable[Range], gpa: int, size: int) -> bool:
    return any(item.contains(gpa, size) for item in ranges)


check_offsets(
    MonitorParameters,
    0x940,
    {"options": 0x18, "monitor": 0x20, "header_gpa": 0x40, "kernel_vmsa_gpa": 0x70, "shared": 0x90, "ram": 0x300},
)
