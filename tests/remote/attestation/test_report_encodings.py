# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports in every form that people have, and what a vTPM's blob around one proves."""

from __future__ import annotations

import base64
import ctypes
import functools
import hashlib
import struct

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from tests.remote.attestation.model_chain import MODEL, NOW
from tests.remote.attestation.verification import failed, verify
from veil.formats.attestation_report import REPORT_BYTES
from veil.formats.binary_text import from_text
from veil.formats.certificate_table import ARK, ASK, VCEK, pack_certificates
from veil.formats.errors import FormatError
from veil.formats.hcl_report import HclHeader, HclReport, RuntimeDataHeader
from veil.remote import ReportFile, read_report
from veil.remote.attestation.verify import verify_report

REPORT = MODEL.report()
JSON = b'{"keys":[{"kid":"HCLAkPub","kty":"RSA"}],"vm-configuration":{"secure-boot":true}}'
HASHES = {1: hashlib.sha256, 2: hashlib.sha384, 3: hashlib.sha512}


@functools.cache
def bound(data: bytes = JSON, kind: int = 1) -> bytes:
    """A report whose REPORT_DATA is the hash of this."""
    return MODEL.report(report_data=HASHES[kind](data).digest().ljust(64, b"\0"))


def blob(
    report: bytes, data: bytes = JSON, *, header: dict[int, int] | None = None, runtime: dict[int, int] | None = None
) -> bytes:
    """As an Azure CVM's vTPM has it; fields by their number can be another."""
    numbers = [1, 0x20 + REPORT_BYTES + 20 + len(data), 2, 0, 0, 0, 0]
    sizes = [20 + len(data), 1, 2, 1, len(data)]
    for at, value in (header or {}).items():
        numbers[at] = value
    for at, value in (runtime or {}).items():
        sizes[at] = value
    packed = b"HCLA" + struct.pack("<7I", *numbers) + report + struct.pack("<5I", *sizes) + data
    return packed.ljust(2600, b"\0")


def _in_lines(text: bytes) -> bytes:
    return b"\r\n".join(text[at : at + 64] for at in range(0, len(text), 64)) + b"\n"


TEXTS = {
    "hexadecimal": REPORT.hex().encode(),
    "hexadecimal with 0x": b"0x" + REPORT.hex().encode() + b"\n",
    "hexadecimal with 0X, in lines": _in_lines(b"0X" + REPORT.hex().upper().encode()),
    "base64": base64.b64encode(REPORT),
    "base64 in lines": _in_lines(base64.b64encode(REPORT)),
    "base64 for addresses": base64.urlsafe_b64encode(REPORT),
    "base64 without its end": base64.b64encode(REPORT).rstrip(b"="),
}


@pytest.mark.parametrize("form", TEXTS)
def test_text(form: str) -> None:
    assert read_report(TEXTS[form]) == ReportFile(REPORT)
    verify_report(read_report(TEXTS[form]), MODEL.chain, roots=MODEL.roots, at=NOW).raise_for_failure()


def test_bare() -> None:
    assert read_report(REPORT) == ReportFile(REPORT)


def test_certificates_behind_it() -> None:
    """As Google's tools write what SNP_GET_EXT_REPORT gives."""
    table = pack_certificates({VCEK: MODEL.leaf.public_bytes(Encoding.DER), ASK: b"ask", ARK: b"ark"})
    assert read_report(REPORT + table) == ReportFile(REPORT, table)
    assert read_report((REPORT + table).hex().encode()) == ReportFile(REPORT, table)


def test_buffers_of_programs_that_ask_the_device() -> None:
    """The whole answer of /dev/sev-guest, and buffers that are longer than what is in them."""
    answer = struct.pack("<II24x", 0, REPORT_BYTES) + REPORT
    for data in (answer, answer.ljust(4000, b"\0"), REPORT.ljust(4096, b"\0"), base64.b64encode(answer)):
        assert read_report(data) == ReportFile(REPORT)
    with pytest.raises(FormatError, match="an attestation report has 1184 bytes, not 1188"):
        read_report(answer + b"more")
    # Cut short, or an error: what is not the answer is a report, and none of a known version.
    for data, version in ((answer[:-1], 0), (struct.pack("<II24x", 22, 0) + bytes(REPORT_BYTES), 22)):
        with pytest.raises(FormatError, match=f"version {version}: known are"):
            verify_report(read_report(data), MODEL.chain)


@given(st.binary(max_size=300))
def test_text_of_any_bytes(data: bytes) -> None:
    if data:
        for text in (data.hex().encode(), b"0x" + data.hex().encode()):
            assert from_text(text) == data
        text = base64.b64encode(data)
        assert from_text(text) == data or text.strip(b"=").lower().strip(b"0123456789abcdef") == b""


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not 0"), (bytes(REPORT_BYTES - 1), "not 1183"), (b"hello", "not a length that base64"),
        (REPORT.hex().encode()[:-1], "2367 hexadecimal digits, an odd number"),
        (REPORT.hex().encode()[:-2], "not 1183"), (base64.b64encode(REPORT)[:-7], "not a length that base64"),
        (b"abc=" * 5, "neither hexadecimal"), (b"-----BEGIN ", "this is PEM"), (REPORT + b"x" * 20, "not 1204"),
        (b"0x", "not 1"),
        (b"YWJj=", "not a length that base64"),
        (b"\r\n-----BEGIN SNP REPORT-----\n%b-----END SNP REPORT-----\n" % base64.encodebytes(REPORT), "its BEGIN and"),
        (b"00000000: 0200 0000 0000 0300  ........\n" * 74, "what xxd or hexdump prints"),
        (b"00000000  02 00 00 00 00 00 03 00  |........|\n*\n" * 9, "what xxd or hexdump prints"),
        (b'{"report": "%b"}' % base64.b64encode(REPORT), "neither hexadecimal nor base64"),
        (b"An error occurred.", "neither hexadecimal nor base64"),
    ],
)  # fmt: skip
def test_what_is_no_report(data: bytes, words: str) -> None:
    with pytest.raises(FormatError, match="an attestation report has 1184 bytes") as caught:
        read_report(data)
    assert words in str(caught.value)


# Azure's vTPM


def test_layout_of_the_vtpms_blob() -> None:
    assert ctypes.sizeof(HclHeader) == 32
    assert ctypes.sizeof(RuntimeDataHeader) == 20
    found = HclReport.parse(blob(REPORT))
    assert found.report == REPORT
    assert found.runtime_data is not None
    assert found.runtime_data.data == JSON


@pytest.mark.parametrize("kind", HASHES)
@pytest.mark.parametrize("version", [1, 2])
def test_runtime_data_that_the_report_binds(kind: int, version: int) -> None:
    file = read_report(blob(bound(kind=kind), header={0: version}, runtime={3: kind}))
    result = verify_report(file, MODEL.chain, roots=MODEL.roots, at=NOW)
    result.raise_for_failure()
    words = next(check.words for check in result.checks if check.name == "runtime data")
    name = HASHES[kind]().name.upper()
    assert words == f"REPORT_DATA binds the vTPM's runtime data ({len(JSON)} bytes, {name})"


@pytest.mark.parametrize(
    "file",
    [
        blob(bound(), JSON.replace(b"true", b"TRUE")),
        blob(bound(kind=2)),
        blob(bound(kind=1), runtime={3: 2}),
        blob(MODEL.report(report_data=hashlib.sha256(JSON).digest() + b"more".ljust(32, b"\0"))),
        blob(MODEL.report(report_data=bytes(64))),
        blob(MODEL.report(report_data=bytes(64)), b""),
    ],
    ids=["changed", "another hash", "another name of the hash", "more than a hash", "none", "empty"],
)
def test_runtime_data_of_others(file: bytes) -> None:
    result = verify_report(read_report(file), MODEL.chain, roots=MODEL.roots, at=NOW)
    assert failed(result) == {"runtime data"}


def test_a_blob_without_runtime_data_is_a_note() -> None:
    file = read_report(blob(REPORT, b"", runtime=dict.fromkeys(range(5), 0)))
    result = verify_report(file, MODEL.chain, roots=MODEL.roots, at=NOW)
    result.raise_for_failure()
    assert [check.name for check in result.checks if check.note] == ["runtime data"]
    assert not any(check.name == "runtime data" for check in verify().checks)


def test_the_blobs_report_is_verified_like_any_other() -> None:
    forged = MODEL.report("mine", report_data=hashlib.sha256(JSON).digest().ljust(64, b"\0"))
    assert failed(verify_report(read_report(blob(forged)), MODEL.chain, roots=MODEL.roots, at=NOW)) == {
        "report signature"
    }


@pytest.mark.parametrize("encode", [bytes, base64.b64encode, lambda data: b"0x" + data.hex().encode()])
def test_blobs_as_text(encode: type[bytes]) -> None:
    assert read_report(encode(blob(bound()))).report == bound()


_BIG = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"HCLA", "at least 1236 are needed"),
        (blob(REPORT)[:1235], "at least 1236 are needed"),
        (blob(REPORT, header={0: 0}), "version 0: known are 1 and 2"),
        (blob(REPORT, header={0: 3}), "version 3: known are 1 and 2"),
        (blob(REPORT, header={1: 0}), "claims a report of 0"),
        (blob(REPORT, header={1: 1183}), "claims a report of 1183"),
        (blob(REPORT, header={1: _BIG}), "claims a report of 4294967295"),
        (blob(REPORT, runtime={0: 0}), "and 0 with its header"),
        (blob(REPORT, runtime={0: _BIG}), "with its header"),
        (blob(REPORT, runtime={4: _BIG}), "claims 4294967295 bytes"),
        (blob(REPORT, runtime={0: 20 + 5000, 4: 5000}), "claims 5000 bytes"),
        (blob(REPORT, bytes(1 << 17)), "claims 131072 bytes"),
        (blob(REPORT, runtime={1: 2}), "runtime data has version 2: known is 1"),
        (blob(REPORT, runtime={2: 4}), "one of TDX, not of SEV-SNP"),
        (blob(REPORT, runtime={2: 1}), "one of VBS, not of SEV-SNP"),
        (blob(REPORT, runtime={2: 77}), "one of type 77, not of SEV-SNP"),
        (blob(REPORT, runtime={3: 0}), "unknown hash type 0"),
        (blob(REPORT, runtime={3: 4}), "unknown hash type 4"),
        (blob(bytes(REPORT_BYTES)), "attestation report of version 0"),
    ],
)
def test_blobs_that_are_wrong(data: bytes, words: str) -> None:
    with pytest.raises(FormatError) as caught:
        verify_report(read_report(data), MODEL.chain, roots=MODEL.roots, at=NOW)
    assert words in str(caught.value)


@given(st.data())
def test_blobs_with_any_bytes_around_the_report(data: st.DataObject) -> None:
    """Read or refused; and what is read of the runtime data stands in the blob."""
    changed = bytearray(blob(bound()))
    for at in data.draw(st.lists(st.sampled_from([*range(4, 32), *range(32 + REPORT_BYTES, 1400)]), max_size=6)):
        changed[at] = data.draw(st.integers(0, 255))
    try:
        found = HclReport.parse(bytes(changed))
    except FormatError:
        return
    assert found.report == bound()
    if found.runtime_data is not None:
        size = len(found.runtime_data.data)
        assert found.runtime_data.data == changed[1236 : 1236 + size]
