# SPDX-License-Identifier: GPL-2.0-or-later
"""Certificates as people have them: PEM, DER, several DERs in a row, PKCS#7, base64 or hexadecimal of these,
and the certificate table of GHCB. All of them come down to DER, one structure each."""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Iterator

from veil.formats.binary_text import from_text
from veil.formats.certificate_table import ARK, ASK, CRL, VCEK, VLEK
from veil.formats.errors import FormatError

__all__ = ["certificate_ders", "is_certificate_table", "revocation_list_der", "without_text"]

#: More than any file of certificates has; the rest of the world's files end here.
_MAX_BYTES = 1 << 20
_MAX_STRUCTURES = 64
_SEQUENCE = 0x30
_CONTEXT_0 = 0xA0
_SET_OF_CERTIFICATES = 0xA0
_SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")
_CERTIFICATE_LABELS = ("CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE", "PKCS7", "CMS")
_CRL_LABELS = ("X509 CRL", "CRL")
_BEGIN, _END, _DASHES = b"-----BEGIN ", b"-----END ", b"-----"
_TABLE_GUIDS = tuple(guid.bytes for guid in (VCEK, VLEK, ASK, ARK, CRL))


def without_text(blob: bytes) -> bytes:
    """The same; base64 and hexadecimal decoded. Raises FormatError for what has no certificates for sure."""
    if len(blob) > _MAX_BYTES:
        raise FormatError(f"that is more than {_MAX_BYTES} bytes")
    if not blob.strip(b"\0 \t\r\n"):
        raise FormatError("there is nothing but blanks and zeros" if blob else "there is nothing")
    return blob if blob[0] == _SEQUENCE or _BEGIN in blob else from_text(blob)


def is_certificate_table(blob: bytes) -> bool:
    """Does it begin with a GUID that such tables have? DER and PEM never do."""
    return blob[:16] in _TABLE_GUIDS


def certificate_ders(blob: bytes) -> list[bytes]:
    """The certificates in DER, PEM or PKCS#7, as DER; what is in it is not looked at. Raises FormatError."""
    found: list[bytes] = []
    for der in _ders(blob, _CERTIFICATE_LABELS):
        found += _in_pkcs7(der) if _is_pkcs7(der) else [der]
        if len(found) > _MAX_STRUCTURES:
            raise FormatError(f"more than {_MAX_STRUCTURES} certificates where three are needed")
    return found


def revocation_list_der(blob: bytes) -> bytes:
    """The one revocation list in a blob. Raises FormatError."""
    found = list(itertools.islice(_ders(without_text(blob), _CRL_LABELS), 2))
    if len(found) != 1:
        raise FormatError("there are several revocation lists: give each by itself")
    return found[0]


def _ders(blob: bytes, labels: tuple[str, ...]) -> Iterator[bytes]:
    return _in_pem(blob, labels) if blob[:1] != bytes((_SEQUENCE,)) and _BEGIN in blob else _structures(blob)


def _structures(blob: bytes) -> Iterator[bytes]:
    """A row of DER SEQUENCEs, each whole; zeros may follow. Raises FormatError."""
    at = 0
    while at < len(blob):
        if blob[at] != _SEQUENCE:
            if at and not blob[at:].strip(b"\0\r\n"):
                return
            raise FormatError(_what_else(blob) if not at else f"at byte {at} there is something else after it")
        _, end = _extent(blob, at)
        yield blob[at:end]
        at = end


def _extent(blob: bytes, at: int) -> tuple[int, int]:
    """Where the content of the structure at `at` begins and ends."""
    head = blob[at + 1 : at + 2]
    if not head:
        raise FormatError("the DER is cut short")
    count = head[0] & 0x7F if head[0] & 0x80 else 0
    if head[0] == 0x80 or count > 4:
        raise FormatError("a length in it is not one of DER")
    start = at + 2 + count
    length = int.from_bytes(blob[at + 2 : start], "big") if count else head[0]
    if start + length > len(blob):
        raise FormatError(f"the DER is cut short: it claims {start + length - at} bytes, there are {len(blob) - at}")
    return start, start + length


def _is_pkcs7(der: bytes) -> bool:
    return der[:1] == b"\x30" and der[_extent(der, 0)[0] :].startswith(_SIGNED_DATA)


def _in_pkcs7(der: bytes) -> list[bytes]:
    """ContentInfo { OID, [0] SignedData { version, digest algorithms, content, [0] certificates ... } } (RFC 2315)."""
    at, _ = _extent(der, 0)
    at += len(_SIGNED_DATA)
    if der[at : at + 1] != bytes((_CONTEXT_0,)):
        raise FormatError("the PKCS#7 structure has no signed data in it")
    at, _ = _extent(der, at)
    if der[at : at + 1] != bytes((_SEQUENCE,)):
        raise FormatError("the PKCS#7 structure has no signed data in it")
    at, end = _extent(der, at)
    while at < end:
        start, after = _extent(der[:end], at)
        if der[at] == _SET_OF_CERTIFICATES:
            return list(_structures(der[start:after]))
        at = after
    raise FormatError("the PKCS#7 structure has no certificates in it")


def _in_pem(blob: bytes, labels: tuple[str, ...]) -> Iterator[bytes]:
    others = []
    found = False
    at = blob.find(_BEGIN)
    while at >= 0:
        start = blob.find(_DASHES, at + len(_BEGIN))
        label = blob[at + len(_BEGIN) : start].decode("ascii", "replace") if start >= 0 else ""
        end = blob.find(_END, at)
        following = blob.find(_BEGIN, at + len(_BEGIN))
        if start < 0 or end < start or 0 <= following < end:
            raise FormatError("the PEM is cut short: a BEGIN line has no END line")
        if not blob.startswith(label.encode() + _DASHES, end + len(_END)):
            raise FormatError(f"the PEM has an END line of another kind than its BEGIN line, {label[:32]!r}")
        if label in labels:
            found = True
            body = b"".join(blob[start + len(_DASHES) : end].split())
            try:
                der = base64.b64decode(body, validate=True)
            except (binascii.Error, ValueError) as error:
                raise FormatError(f"what is between BEGIN and END {label} is not base64") from error
            if der[:1] != bytes((_SEQUENCE,)):
                raise FormatError(f"what is between BEGIN and END {label} is not DER")
            # Trusted certificates of OpenSSL's have settings of its own after the certificate.
            yield der[: _extent(der, 0)[1]]
        else:
            others.append(repr(label[:32]))
        at = following
    if not found:
        raise FormatError(f"PEM of another kind: {', '.join(list(dict.fromkeys(others))[:4])}")


def _what_else(blob: bytes) -> str:
    """What people hand over by mistake."""
    text = blob[:256].lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<")):
        return "a web page: the server answered something else than what was asked for"
    if text.startswith((b"{", b"[")):
        return "JSON"
    if text.startswith(b"hcla"):
        return "the blob of a vTPM, which has a report in it and no certificates"
    return "neither PEM nor DER, PKCS#7, base64 nor a certificate table"
