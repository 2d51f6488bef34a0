# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages between guest and secure processor, as the guest reads them and as the secure processor does.

Random bytes are never authentic, so an input can also ask for its bytes to be sealed: the holder of a key is hostile
too.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fuzz.target import Target
from fuzz.world import GUEST, guest_requests, software_machine
from veil.formats.attestation_report import REPORT_BYTES, SIGNED_BYTES, AttestationReport
from veil.formats.guest_message import (
    KEY_BYTES,
    MAX_PAYLOAD,
    MESSAGE_BYTES,
    KeyRequest,
    MessageHeader,
    MessageType,
    ReportRequest,
    open_message,
    parse_report_response,
    read_header,
    seal_message,
)
from veil.snp.guest_requests import FirmwareStatus

__all__ = ["TARGETS"]

_KEYS = [bytes((number,)) * KEY_BYTES for number in range(1, 5)]
_HEADER = 0x60
_SEALED_FROM = 0x30
_TAG = 16
_PAGE, _SEALED = 1, 2


def _sealed(key: bytes, sequence_number: int, header: bytes, payload: bytes) -> bytes:
    """A page with any header, and a tag that is right for it: `seal_message` makes only good ones."""
    raw = AESGCM(key).encrypt(sequence_number.to_bytes(12, "little"), payload, header[_SEALED_FROM:])
    tag = raw[-_TAG:].ljust(_SEALED_FROM - 0x10, b"\0")
    return (tag + header[len(tag) :] + raw[:-_TAG]).ljust(MESSAGE_BYTES, b"\0")[:MESSAGE_BYTES]


# The guest's side. An input: a byte that says how, then the message. _PAGE: the rest of the page is zero, so that not
# all inputs have 4096 bytes; _SEALED: header and plain text, to be sealed.


def _open(data: bytes) -> None:
    how, page = data[0] if data else 0, data[1:]
    header = page[:_HEADER].ljust(_HEADER, b"\0")
    if how & _SEALED:
        page = _sealed(_KEYS[0], 1, header, page[_HEADER : _HEADER + MAX_PAYLOAD])
    elif how & _PAGE:
        page = page.ljust(MESSAGE_BYTES, b"\0")
    assert bytes(read_header(page)) == page[:_HEADER]
    kind, payload = open_message(_KEYS[0], page, sequence_number=1, vmpck=0)
    if how & _SEALED:
        assert payload == data[1 + _HEADER :][: len(payload)]
    else:
        assert _authentic(page, len(payload)) in _known(), "a message that nobody sealed"
    if kind == MessageType.REPORT_RSP:
        _, report = parse_report_response(payload)
        assert len(report) <= len(payload) - 32
        AttestationReport.parse(report)


def _authentic(page: bytes, size: int) -> bytes:
    """What the tag is over: the rest, as the page's end, anybody can change."""
    return page[_SEALED_FROM : _HEADER + size]


@functools.cache
def _known() -> frozenset[bytes]:
    sizes = len(_report_response()), 64
    return frozenset(_authentic(page, size) for page, size in zip(_pages(), sizes, strict=True))


def _report_response() -> bytes:
    # Without its signature, which is another one each time.
    report = software_machine().reports[0][:SIGNED_BYTES].ljust(REPORT_BYTES, b"\0")
    return struct.pack("<II24x", FirmwareStatus.SUCCESS, len(report)) + report


def _pages() -> list[bytes]:
    return [
        seal_message(_KEYS[0], 1, 0, MessageType.REPORT_RSP, _report_response()),
        seal_message(_KEYS[0], 1, 0, MessageType.KEY_RSP, bytes(64)),
    ]


def _open_seeds() -> Iterable[bytes]:
    for page, payload in zip(_pages(), (_report_response(), bytes(64)), strict=True):
        yield bytes(1) + page
        yield bytes((_PAGE,)) + page.rstrip(b"\0")
        yield bytes((_SEALED,)) + page[:_HEADER] + payload


def _response(data: bytes) -> None:
    status, report = parse_report_response(data)
    assert data.startswith(struct.pack("<II", status, len(report)))
    assert data[32:].startswith(report)


# The secure processor's side. An input is a conversation: messages {what, kind, u16 length, bytes}; `what`: the VMPCK
# in bits 1:0, bit 2 for a page as it is instead of one that is sealed.

_MESSAGE = struct.Struct("<BBH")
_RAW = 4
_MAX_MESSAGES = 8


def _requests(data: bytes) -> None:
    requests = guest_requests()
    counts = [0] * len(_KEYS)
    at = 0
    for _ in range(_MAX_MESSAGES):
        if at + _MESSAGE.size > len(data):
            return
        what, kind, length = _MESSAGE.unpack_from(data, at)
        at += _MESSAGE.size
        content = data[at : at + min(length, MAX_PAYLOAD)]
        at += length
        vmpck = what & 3
        page = content
        if not what & _RAW:
            header = MessageHeader(
                sequence_number=counts[vmpck] + 1, algorithm=1, header_version=1, header_size=_HEADER,
                message_type=kind, message_version=1, message_size=len(content), vmpck=vmpck,
            )  # fmt: skip
            page = _sealed(_KEYS[vmpck], counts[vmpck] + 1, bytes(header), content)
        before = list(requests.dump()["counts"])
        status, answer = requests.handle(page, _KEYS, GUEST)
        FirmwareStatus(status)
        if status != FirmwareStatus.SUCCESS:
            assert answer == b""
            assert requests.dump()["counts"] == before
            continue
        assert not what & _RAW, "a message that nobody sealed"
        counts[vmpck] += 2
        assert requests.dump()["counts"] == counts
        _answer(answer, counts[vmpck], vmpck, kind)


def _answer(page: bytes, sequence_number: int, vmpck: int, asked: int) -> None:
    kind, payload = open_message(_KEYS[vmpck], page, sequence_number=sequence_number, vmpck=vmpck)
    assert kind == asked + 1
    if kind == MessageType.KEY_RSP:
        assert len(payload) == 64
        return
    status, report = parse_report_response(payload)
    assert len(report) == (0 if status else REPORT_BYTES)
    if report:
        # A level speaks for itself and for less privileged ones.
        assert vmpck <= AttestationReport.parse(report).vmpl <= 3


def _request_seeds() -> Iterable[bytes]:
    asked = [
        (vmpck, kind, bytes(request))
        for vmpck in range(len(_KEYS))
        for kind, request in (
            (MessageType.REPORT_REQ, ReportRequest(vmpl=vmpck)),
            (MessageType.REPORT_REQ, ReportRequest(vmpl=3, key_select=1)),
            (MessageType.KEY_REQ, KeyRequest(vmpl=vmpck, guest_field_select=0x7F)),
            (MessageType.CPUID_REQ, ReportRequest()),
        )
    ]
    messages = [_MESSAGE.pack(vmpck, kind, len(content)) + content for vmpck, kind, content in asked]
    yield from messages
    yield b"".join(messages[:_MAX_MESSAGES])
    page = seal_message(_KEYS[0], 1, 0, MessageType.REPORT_REQ, bytes(ReportRequest()))
    yield _MESSAGE.pack(_RAW, 0, _HEADER) + page[:_HEADER]


TARGETS = (
    Target("guest-message", _open, _open_seeds, max_bytes=MESSAGE_BYTES + 8),
    Target("report-response", _response, lambda: [_report_response()], max_bytes=2048),
    Target("guest-requests", _requests, _request_seeds, max_bytes=2048),
)
