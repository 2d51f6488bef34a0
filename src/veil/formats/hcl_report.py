# SPDX-License-Identifier: GPL-2.0-or-later
"""The blob in an Azure CVM's vTPM (NV index 0x01400001): a report of the hardware in a wrapper of the paravisor's.

A header that begins with "HCLA", room for a report of 0x4A0 bytes, a header of the runtime data and the runtime data:
JSON with the vTPM's attestation key, whose hash is in REPORT_DATA. Microsoft, "Azure confidential VMs guest attestation
design detail", and OpenHCL's `igvm_attest` protocol, version 1. Nothing but the report itself is signed.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
from dataclasses import dataclass

from veil.formats.attestation_report import REPORT_BYTES
from veil.formats.errors import FormatError
from veil.formats.offsets import check_offsets

__all__ = ["HCL_SIGNATURE", "HclHeader", "HclReport", "HclReportType", "RuntimeData", "RuntimeDataHash",
           "RuntimeDataHeader"]  # fmt: skip

_U32 = ctypes.c_uint32

HCL_SIGNATURE = b"HCLA"
_VERSIONS = (1, 2)
_RUNTIME_DATA_VERSION = 1
_RUNTIME_DATA_BYTES = 64 << 10


class HclReportType(enum.IntEnum):
    """Whose report is in the blob."""

    VBS = 1
    SNP = 2
    TVM = 3
    TDX = 4


class RuntimeDataHash(enum.IntEnum):
    """How the runtime data is hashed for REPORT_DATA."""

    SHA256 = 1
    SHA384 = 2
    SHA512 = 3


class HclHeader(ctypes.LittleEndianStructure):
    """32 bytes. `report_size`: of what follows, as its writer counts. `request_type` and `status` are those of the
    paravisor's request; nobody signed them, and nothing hangs on them."""

    _pack_ = 1
    _fields_ = [
        ("signature", ctypes.c_char * 4), ("version", _U32), ("report_size", _U32), ("request_type", _U32),
        ("status", _U32), ("reserved_14", _U32 * 3),
    ]  # fmt: skip

    signature: bytes
    version: int
    report_size: int
    request_type: int
    status: int


class RuntimeDataHeader(ctypes.LittleEndianStructure):
    """20 bytes. `data_size`: this header and the data."""

    _pack_ = 1
    _fields_ = [
        ("data_size", _U32), ("version", _U32), ("report_type", _U32), ("hash_type", _U32), ("variable_data_size", _U32)
    ]  # fmt: skip

    data_size: int
    version: int
    report_type: int
    hash_type: int
    variable_data_size: int


_REPORT_AT = ctypes.sizeof(HclHeader)
_HEADER_AT = _REPORT_AT + REPORT_BYTES
_DATA_AT = _HEADER_AT + ctypes.sizeof(RuntimeDataHeader)
check_offsets(HclHeader, 0x20, {"version": 4, "report_size": 8, "request_type": 12, "status": 16, "reserved_14": 20})
check_offsets(RuntimeDataHeader, 20, {"version": 4, "report_type": 8, "hash_type": 12, "variable_data_size": 16})


@dataclass(frozen=True)
class RuntimeData:
    """What the paravisor wants to be known, in JSON; whether the report binds it is to be checked."""

    data: bytes
    hash_type: RuntimeDataHash

    def report_data(self) -> bytes:
        """The REPORT_DATA that binds it: its hash, and zeros up to 64 bytes."""
        return hashlib.new(self.hash_type.name.lower(), self.data).digest().ljust(64, b"\0")


@dataclass(frozen=True)
class HclReport:
    """The report as found, and the runtime data, None if the blob has none."""

    report: bytes
    runtime_data: RuntimeData | None

    @classmethod
    def parse(cls, data: bytes) -> HclReport:
        """From the NV index's bytes, which may have anything after what its sizes cover. Raises FormatError."""
        if len(data) < _DATA_AT:
            raise FormatError(f"the vTPM's blob has {len(data)} bytes, at least {_DATA_AT} are needed: it is cut short")
        header = HclHeader.from_buffer_copy(data)
        if data[:4] != HCL_SIGNATURE:
            raise FormatError('the vTPM\'s blob does not begin with "HCLA"')
        if header.version not in _VERSIONS:
            raise FormatError(f"the vTPM's blob has version {header.version}: known are 1 and 2")
        if not REPORT_BYTES <= header.report_size <= len(data):
            raise FormatError(f"the vTPM's blob of {len(data)} bytes claims a report of {header.report_size}")
        return cls(data[_REPORT_AT:_HEADER_AT], _runtime_data(data))


def _runtime_data(data: bytes) -> RuntimeData | None:
    raw = data[_HEADER_AT:_DATA_AT]
    if not any(raw):
        return None
    header = RuntimeDataHeader.from_buffer_copy(raw)
    if header.report_type != HclReportType.SNP:
        found = f"type {header.report_type}"
        if header.report_type in set(HclReportType):
            found = HclReportType(header.report_type).name
        raise FormatError(f"the report in the vTPM's blob is one of {found}, not of SEV-SNP")
    if header.version != _RUNTIME_DATA_VERSION:
        raise FormatError(f"the vTPM's runtime data has version {header.version}: known is {_RUNTIME_DATA_VERSION}")
    if header.hash_type not in set(RuntimeDataHash):
        raise FormatError(f"the vTPM's runtime data has the unknown hash type {header.hash_type}")
    size = header.variable_data_size
    if header.data_size != len(raw) + size or size > min(len(data) - _DATA_AT, _RUNTIME_DATA_BYTES):
        raise FormatError(
            f"the vTPM's runtime data claims {size} bytes and {header.data_size} with its header, "
            f"there are {len(data) - _DATA_AT}"
        )
    return RuntimeData(data[_DATA_AT : _DATA_AT + size], RuntimeDataHash(header.hash_type))
