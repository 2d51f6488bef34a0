# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages between a guest and the secure processor (56860, "Guest Messages"), sealed with a VMPCK.

A message is one page at most: a header of 0x60 bytes and an encrypted payload. AES-256-GCM; the IV is the sequence
number, little-endian, in 12 bytes; the header from offset 0x30 on is authenticated with it.
"""

from __future__ import annotations

import ctypes
import enum
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from veil.formats.errors import FormatError
from veil.formats.offsets import check_offsets
from veil.formats.page_sizes import PAGE_SIZE

__all__ = [
    "KEY_BYTES",
    "MAX_PAYLOAD",
    "MESSAGE_BYTES",
    "KeyRequest",
    "MessageHeader",
    "MessageType",
    "ReportRequest",
    "open_message",
    "parse_report_response",
    "read_header",
    "seal_message",
]

_U8, _U16, _U32, _U64 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64

MESSAGE_BYTES = PAGE_SIZE
_HEADER_BYTES = 0x60
MAX_PAYLOAD = MESSAGE_BYTES - _HEADER_BYTES
_AUTHENTICATED_FROM = 0x30
_TAG_BYTES = 16
_AES_256_GCM = 1
_HEADER_VERSION = 1
_MESSAGE_VERSION = 1
_SEQUENCE_END = (1 << 64) - 1
#: length of a VMPCK, and of a derived key
KEY_BYTES = 32


class MessageType(enum.IntEnum):
    """MSG_TYPE: a request is odd, its response the number after it."""

    CPUID_REQ = 1
    CPUID_RSP = 2
    KEY_REQ = 3
    KEY_RSP = 4
    REPORT_REQ = 5
    REPORT_RSP = 6
    EXPORT_REQ = 7
    EXPORT_RSP = 8
    IMPORT_REQ = 9
    IMPORT_RSP = 10
    ABSORB_REQ = 11
    ABSORB_RSP = 12
    VMRK_REQ = 13
    VMRK_RSP = 14
    ABSORB_NOMA_REQ = 15
    ABSORB_NOMA_RSP = 16
    TSC_INFO_REQ = 17
    TSC_INFO_RSP = 18


class MessageHeader(ctypes.LittleEndianStructure):
    """0x60 bytes."""

    _pack_ = 1
    _fields_ = [
        ("authtag", _U8 * 32),
        ("sequence_number", _U64),
        ("reserved_28", _U64),
        ("algorithm", _U8),
        ("header_version", _U8),
        ("header_size", _U16),
        ("message_type", _U8),
        ("message_version", _U8),
        ("message_size", _U16),
        ("reserved_38", _U32),
        ("vmpck", _U8),
        ("reserved_3d", _U8 * 35),
    ]

    authtag: ctypes.Array[ctypes.c_uint8]
    sequence_number: int
    reserved_28: int
    algorithm: int
    header_version: int
    header_size: int
    message_type: int
    message_version: int
    message_size: int
    reserved_38: int
    vmpck: int


check_offsets(
    MessageHeader,
    _HEADER_BYTES,
    {"sequence_number": 0x20, "algorithm": 0x30, "header_size": 0x32, "message_type": 0x34, "message_size": 0x36,
     "vmpck": 0x3C},
)  # fmt: skip


class KeyField(enum.IntFlag):
    """GUEST_FIELD_SELECT of MSG_KEY_REQ: what is mixed into a derived key."""

    GUEST_POLICY = 1 << 0
    IMAGE_ID = 1 << 1
    FAMILY_ID = 1 << 2
    MEASUREMENT = 1 << 3
    GUEST_SVN = 1 << 4
    TCB_VERSION = 1 << 5
    LAUNCH_MITIGATION_VECTOR = 1 << 6


class ReportRequest(ctypes.LittleEndianStructure):
    """MSG_REPORT_REQ, 96 bytes. `key_select`: 0 VLEK if there is one, else VCEK; 1 VCEK; 2 VLEK."""

    _pack_ = 1
    _fields_ = [("report_data", _U8 * 64), ("vmpl", _U32), ("key_select", _U32), ("reserved_48", _U8 * 24)]

    report_data: ctypes.Array[ctypes.c_uint8]
    vmpl: int
    key_select: int
    reserved_48: ctypes.Array[ctypes.c_uint8]


class KeyRequest(ctypes.LittleEndianStructure):
    """MSG_KEY_REQ, 40 bytes here (firmware that knows mitigation vectors takes them in a longer request)."""

    _pack_ = 1
    _fields_ = [
        ("root_key_select", _U32),
        ("reserved_04", _U32),
        ("guest_field_select", _U64),
        ("vmpl", _U32),
        ("guest_svn", _U32),
        ("tcb_version", _U64),
        ("launch_mitigation_vector", _U64),
    ]

    root_key_select: int
    reserved_04: int
    guest_field_select: int
    vmpl: int
    guest_svn: int
    tcb_version: int
    launch_mitigation_vector: int


check_offsets(ReportRequest, 0x60, {"vmpl": 0x40, "key_select": 0x44})
check_offsets(KeyRequest, 0x28, {"guest_field_select": 8, "vmpl": 0x10, "guest_svn": 0x14, "tcb_version": 0x18})


def seal_message(key: bytes, sequence_number: int, vmpck: int, kind: MessageType, payload: bytes) -> bytes:
    """A message page. A sequence number must never be used twice with one key: it is the IV."""
    if not 0 < sequence_number < _SEQUENCE_END:
        raise FormatError(f"guest message with sequence number {sequence_number:#x}: the key is used up")
    if len(payload) > MAX_PAYLOAD:
        raise FormatError(f"a guest message holds {MAX_PAYLOAD} bytes, not {len(payload)}")
    header = MessageHeader(
        sequence_number=sequence_number,
        algorithm=_AES_256_GCM,
        header_version=_HEADER_VERSION,
        header_size=_HEADER_BYTES,
        message_type=kind,
        message_version=_MESSAGE_VERSION,
        message_size=len(payload),
        vmpck=vmpck,
    )
    sealed = AESGCM(key).encrypt(_iv(sequence_number), payload, bytes(header)[_AUTHENTICATED_FROM:])
    header.authtag = (_U8 * 32)(*sealed[-_TAG_BYTES:])
    return (bytes(header) + sealed[:-_TAG_BYTES]).ljust(MESSAGE_BYTES, b"\0")


def read_header(page: bytes) -> MessageHeader:
    """The header of a message page, its fixed fields checked; nothing of it is authentic yet."""
    if len(page) != MESSAGE_BYTES:
        raise FormatError(f"a guest message is one page, not {len(page)} bytes")
    header = MessageHeader.from_buffer_copy(page)
    if (header.algorithm, header.header_version, header.header_size) != (_AES_256_GCM, _HEADER_VERSION, _HEADER_BYTES):
        raise FormatError("the guest message's header is not one of version 1 with AES-256-GCM")
    if header.message_version != _MESSAGE_VERSION or header.message_size > MAX_PAYLOAD or header.vmpck > 3:
        raise FormatError("the guest message's header has an impossible version, size or VMPCK")
    if header.reserved_28 or header.reserved_38:
        raise FormatError("the guest message's header has reserved fields that are not zero")
    return header


def open_message(key: bytes, page: bytes, *, sequence_number: int, vmpck: int) -> tuple[int, bytes]:
    """(MSG_TYPE, payload) of a message with exactly this sequence number.

    Raises FormatError for anything else: who carries messages may have kept, cut or made them.
    """
    header = read_header(page)
    if header.sequence_number != sequence_number:
        raise FormatError(f"guest message {header.sequence_number:#x} where {sequence_number:#x} is due")
    if header.vmpck != vmpck:
        raise FormatError(f"guest message for VMPCK {header.vmpck}, not {vmpck}")
    end = _HEADER_BYTES + header.message_size
    sealed = page[_HEADER_BYTES:end] + bytes(header.authtag)[:_TAG_BYTES]
    try:
        payload = AESGCM(key).decrypt(_iv(sequence_number), sealed, bytes(header)[_AUTHENTICATED_FROM:])
    except InvalidTag:
        raise FormatError("the guest message is not authentic") from None
    return header.message_type, payload


def parse_report_response(payload: bytes) -> tuple[int, bytes]:
    """(status, report) of MSG_REPORT_RSP: u32 status, u32 size, 24 reserved bytes, the report."""
    if len(payload) < 32:
        raise FormatError(f"a report response of {len(payload)} bytes is cut short")
    status, size = struct.unpack_from("<II", payload)
    if size > len(payload) - 32:
        raise FormatError(f"a report response of {len(payload)} bytes claims a report of {size}")
    return status, payload[32 : 32 + size]


def parse_key_response(payload: bytes) -> tuple[int, bytes]:
    """(status, key) of MSG_KEY_RSP: u32 status, 28 reserved bytes, the key."""
    if len(payload) != 32 + KEY_BYTES:
        raise FormatError(f"a key response has {32 + KEY_BYTES} bytes, not {len(payload)}")
    (status,) = struct.unpack_from("<I", payload)
    return status, payload[32:]


def _iv(sequence_number: int) -> bytes:
    return sequence_number.to_bytes(12, "little")
