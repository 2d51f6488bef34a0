# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports as people have them: bare, as text, before a certificate table, in an Azure CVM's vTPM blob."""

from __future__ import annotations

import codecs
import struct
from dataclasses import dataclass

from veil.formats.attestation_report import REPORT_BYTES, AttestationReport, SigningKey
from veil.formats.binary_text import from_text
from veil.formats.errors import FormatError
from veil.formats.hcl_report import HCL_SIGNATURE, HclReport, RuntimeData
from veil.remote.attestation.certificate_encodings import is_certificate_table

__all__ = ["ReportFile", "read_report"]

#: MSG_REPORT_RSP without an error: status, the report's size, reserved. Some programs keep all of it.
_RESPONSE = struct.pack("<II24x", 0, REPORT_BYTES)
_ARMOUR = b"-----BEGIN "
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_PLAIN = frozenset(b"\t\n\v\f\r") | frozenset(range(0x20, 0x7F))


@dataclass(frozen=True)
class ReportFile:
    """The 1184 bytes, and what came with them in one blob. `in_vtpm_blob`: then `runtime_data` may still be None.
    `certificate_table`: behind the report, as some tools write what SNP_GET_EXT_REPORT gives; empty if there is none.
    """

    report: bytes
    certificate_table: bytes = b""
    in_vtpm_blob: bool = False
    runtime_data: RuntimeData | None = None

    @property
    def signing_key(self) -> SigningKey | None:
        """What the report says of the key that signed it. Raises FormatError if it is not an attestation report."""
        return AttestationReport.parse(self.report).signing_key


def read_report(data: bytes) -> ReportFile:
    """A report in any form. Raises FormatError, which says what the data is not; nothing is verified here."""
    # An editor's mark before text, a line's end after bytes: no report begins or ends so.
    data = data.removeprefix(b"\xef\xbb\xbf")
    if data[REPORT_BYTES:] in (b"\n", b"\r\n"):
        data = data[:REPORT_BYTES]
    if len(data) != REPORT_BYTES and not data.startswith(HCL_SIGNATURE):
        data = _from_text(data)
    if data.startswith(HCL_SIGNATURE):
        blob = HclReport.parse(data)
        return ReportFile(blob.report, in_vtpm_blob=True, runtime_data=blob.runtime_data)
    if data.startswith(_RESPONSE) and len(data) >= len(_RESPONSE) + REPORT_BYTES:
        data = data[len(_RESPONSE) :]
    if len(data) > REPORT_BYTES and not any(data[REPORT_BYTES:]):
        data = data[:REPORT_BYTES]
    if len(data) > REPORT_BYTES and is_certificate_table(data[REPORT_BYTES:]):
        return ReportFile(data[:REPORT_BYTES], data[REPORT_BYTES:])
    if len(data) != REPORT_BYTES:
        raise FormatError(
            f"an attestation report has {REPORT_BYTES} bytes, not {len(data)}; "
            "it is read as bytes, base64, hexadecimal, an SNP_GET_REPORT answer, with a certificate table behind it, "
            "or in an Azure vTPM blob"
        )
    return ReportFile(data)


def _from_text(data: bytes) -> bytes:
    wanted = f"an attestation report has {REPORT_BYTES} bytes, or text for them"
    if _is_utf_16(data):
        raise FormatError(
            f"{wanted}: this is text in UTF-16, as PowerShell's `>` writes it; save it as ASCII or UTF-8 "
            "(`iconv -f UTF-16 -t UTF-8`, or PowerShell's Set-Content -Encoding ascii). Bytes that went through `>` "
            "are lost: have the tool write its file itself"
        )
    if data.lstrip().startswith(_ARMOUR):
        raise FormatError(
            f"{wanted}: this is PEM; give what stands between its BEGIN and END lines, if that is a report"
        )
    try:
        found = from_text(data)
    except FormatError as error:
        raise FormatError(f"{wanted}: {error}") from error
    if found is data and data and _PLAIN.issuperset(data):
        raise FormatError(
            f"{wanted}: this text is neither hexadecimal nor base64 alone; what xxd or hexdump prints and JSON are "
            "not read (for xxd's, `xxd -r` gives the bytes back)"
        )
    return found


def _is_utf_16(data: bytes) -> bool:
    """With its mark, or without: then each other byte is zero, and the rest plain text."""
    if data.startswith(_UTF_16):
        return True
    halves = data[::2], data[1::2]
    return len(data) > 1 and any(not any(high) and _PLAIN.issuperset(low) for low, high in (halves, halves[::-1]))
