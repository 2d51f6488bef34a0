# SPDX-License-Identifier: GPL-2.0-or-later
"""The attestation protocol, number 1 (58019, section 7): a kernel asks for reports of VMPL 0."""

from __future__ import annotations

import ctypes
import uuid
from collections.abc import Generator
from typing import TYPE_CHECKING

from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.services_manifest import NONCE_BYTES
from veil.formats.svsm_calls import AttestationCall, SvsmProtocol
from veil.monitor.secure_processor import AnswerUnavailable
from veil.monitor.svsm_call import CallError, ResultCode, SvsmRequest, SvsmResult
from veil.snp.layouts import check_offsets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from veil.monitor.attestation import Attestation
    from veil.monitor.ghcb import Ghcb
    from veil.monitor.page_book import PageBook
    from veil.snp.view import View

__all__ = ["AttestationProtocol"]

_U16, _U32, _U64, _U8 = ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint8

#: What Linux takes at most (SEV_FW_BLOB_MAX_SIZE).
_MAX_CERTIFICATES = 0x4000
_NO_CERTIFICATES = bytes(24)


class _Operation(ctypes.LittleEndianStructure):
    """58019, table 11; SINGLE_SERVICE (table 13) adds what follows `reserved_3c`."""

    _pack_ = 1
    _fields_ = [
        ("report_gpa", _U64),
        ("report_size", _U32),
        ("reserved_0c", _U32),
        ("nonce_gpa", _U64),
        ("nonce_size", _U16),
        ("reserved_1a", _U8 * 6),
        ("manifest_gpa", _U64),
        ("manifest_size", _U32),
        ("reserved_2c", _U32),
        ("certificates_gpa", _U64),
        ("certificates_size", _U32),
        ("reserved_3c", _U32),
        ("service_guid", _U8 * 16),
        ("manifest_version", _U32),
        ("reserved_54", _U32),
    ]

    report_gpa: int
    report_size: int
    reserved_0c: int
    nonce_gpa: int
    nonce_size: int
    reserved_1a: ctypes.Array[ctypes.c_uint8]
    manifest_gpa: int
    manifest_size: int
    reserved_2c: int
    certificates_gpa: int
    certificates_size: int
    reserved_3c: int
    service_guid: ctypes.Array[ctypes.c_uint8]
    manifest_version: int
    reserved_54: int


check_offsets(
    _Operation,
    0x58,
    {"nonce_gpa": 0x10, "manifest_gpa": 0x20, "certificates_gpa": 0x30, "service_guid": 0x40, "manifest_version": 0x50},
)
_SERVICES_BYTES = 0x40

_INVALID_PARAMETER = ResultCode.INVALID_PARAMETER


class AttestationProtocol:
    """Copies the request once, checks all of it, then asks the secure processor."""

    number = int(SvsmProtocol.ATTESTATION)
    versions = (1, 1)

    def __init__(self, attestation: Attestation, book: PageBook, view: View, hosts: Mapping[int, Ghcb]) -> None:
        """`hosts`: each VCPU's GHCB, by APIC ID."""
        self._attestation = attestation
        self._book = book
        self._view = view
        self._hosts = hosts

    def call(self, request: SvsmRequest) -> SvsmResult | Generator[None, None, SvsmResult]:
        """Answer a call; one that needs a report goes on over several VMGEXITs."""
        if request.call not in set(AttestationCall):
            return SvsmResult(ResultCode.UNSUPPORTED_CALL)
        if self._attestation.busy:
            return SvsmResult(ResultCode.BUSY)
        single = request.call == AttestationCall.SINGLE_SERVICE
        operation = self._read(request.rcx, single=single)
        if single:
            manifest = self._attestation.service_manifest(uuid.UUID(bytes_le=bytes(operation.service_guid)))
            if manifest is None:
                return SvsmResult(ResultCode.UNSUPPORTED_PROTOCOL)
        else:
            manifest = self._attestation.services_manifest()
        nonce = self._view.read(operation.nonce_gpa, NONCE_BYTES)
        return self._attest(self._hosts[request.vcpu], operation, nonce, manifest)

    def _read(self, gpa: int, *, single: bool) -> _Operation:
        size = ctypes.sizeof(_Operation) if single else _SERVICES_BYTES
        # COCONUT-SVSM and Linux take the structure to lie in one page.
        if gpa % 8 or gpa % PAGE_SIZE + size > PAGE_SIZE:
            raise CallError(_INVALID_PARAMETER)
        self._need(gpa, size)
        operation = _Operation.from_buffer_copy(self._view.read(gpa, size).ljust(ctypes.sizeof(_Operation), b"\0"))
        reserved = (operation.reserved_0c, operation.reserved_2c, operation.reserved_3c, operation.reserved_54)
        if any(reserved) or any(operation.reserved_1a) or operation.manifest_version:
            raise CallError(_INVALID_PARAMETER)
        # With another length of nonces, a nonce and a manifest could be cut at another place than they were joined at.
        if operation.nonce_size != NONCE_BYTES or operation.nonce_gpa % PAGE_SIZE + NONCE_BYTES > PAGE_SIZE:
            raise CallError(_INVALID_PARAMETER)
        if operation.certificates_size > _MAX_CERTIFICATES:
            raise CallError(_INVALID_PARAMETER)
        self._need(operation.nonce_gpa, NONCE_BYTES)
        buffers = (
            (operation.report_gpa, operation.report_size),
            (operation.manifest_gpa, operation.manifest_size),
            (operation.certificates_gpa, operation.certificates_size),
        )
        for start, length in buffers:
            if length and start % PAGE_SIZE:
                raise CallError(_INVALID_PARAMETER)
            if length:
                self._need(start, length)
        return operation

    def _need(self, gpa: int, size: int) -> None:
        # Without this the kernel could have VMPL 0 read the monitor's memory into a manifest's hash, or write over it.
        if not self._book.is_kernel_data(gpa, size):
            raise CallError(ResultCode.INVALID_ADDRESS)

    def _attest(
        self, host: Ghcb, operation: _Operation, nonce: bytes, manifest: bytes
    ) -> Generator[None, None, SvsmResult]:
        try:
            evidence = yield from self._attestation.attest(host, nonce, manifest)
        except AnswerUnavailable:
            return SvsmResult(ResultCode.BUSY if self._attestation.busy else ResultCode.INVALID_REQUEST)
        certificates = evidence.certificates if operation.certificates_size else b""
        if certificates.startswith(_NO_CERTIFICATES):
            certificates = b""
        certificates = certificates.rstrip(b"\0").ljust(_whole_pages(certificates), b"\0") if certificates else b""
        # The lengths go back even if a buffer is too small: the caller makes it larger and asks again.
        lengths = {"rcx": len(manifest), "rdx": len(certificates), "r8": len(evidence.report)}
        if (
            len(manifest) > operation.manifest_size
            or len(evidence.report) > operation.report_size
            or len(certificates) > operation.certificates_size
        ):
            return SvsmResult(_INVALID_PARAMETER, **lengths)
        for gpa, data in (
            (operation.report_gpa, evidence.report),
            (operation.manifest_gpa, manifest),
            (operation.certificates_gpa, certificates),
        ):
            if data:
                # The kernel ran on other VCPUs meanwhile and may have given the pages away.
                self._need(gpa, len(data))
                self._view.write(gpa, data)
        return SvsmResult(ResultCode.SUCCESS, **lengths)


def _whole_pages(table: bytes) -> int:
    return -(-len(table.rstrip(b"\0")) // PAGE_SIZE) * PAGE_SIZE
