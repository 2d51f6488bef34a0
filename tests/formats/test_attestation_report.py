# SPDX-License-Identifier: GPL-2.0-or-later
"""The report's layout and the TCB version."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.formats.attestation_report import (
    REPORT_BYTES,
    AttestationReport,
    SigningKey,
    TcbLayout,
    TcbVersion,
    tcb_layout,
)
from veil.formats.errors import FormatError


def report(**fields: int) -> AttestationReport:
    return AttestationReport(**{"version": 3, "signature_algorithm": 1, **fields})


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_published_versions(version: int) -> None:
    parsed = AttestationReport.parse(bytes(report(version=version)))
    assert parsed.version == version
    assert parsed.has_cpuid == (version >= 3)
    assert parsed.has_mitigations == (version >= 5)


@pytest.mark.parametrize("version", [0, 1, 6, 0xFFFFFFFF])
def test_other_versions(version: int) -> None:
    with pytest.raises(FormatError, match="version"):
        AttestationReport.parse(bytes(report(version=version)))


@pytest.mark.parametrize("length", [0, 1, REPORT_BYTES - 1, REPORT_BYTES + 1, 4096])
def test_length(length: int) -> None:
    with pytest.raises(FormatError, match="1184 bytes"):
        AttestationReport.parse(bytes(length))


def test_other_algorithms_levels_and_trailing_bytes() -> None:
    with pytest.raises(FormatError, match="algorithm"):
        AttestationReport.parse(bytes(report(signature_algorithm=2)))
    with pytest.raises(FormatError, match="VMPL"):
        AttestationReport.parse(bytes(report(vmpl=4)))
    assert AttestationReport.parse(bytes(report(vmpl=0xFFFFFFFF))).vmpl == 0xFFFFFFFF  # asked for by the host
    spoilt = bytearray(bytes(report()))
    spoilt[-1] = 1
    with pytest.raises(FormatError, match="must be zero"):
        AttestationReport.parse(bytes(spoilt))


def test_byte_fields() -> None:
    made = report()
    made.set_bytes(report_data=bytes(range(64)), chip_id=b"\xaa" * 64)
    data = bytes(made)
    assert data[0x50:0x90] == bytes(range(64))
    assert data[0x1A0:0x1E0] == b"\xaa" * 64
    with pytest.raises(FormatError, match="measurement has 48 bytes"):
        made.set_bytes(measurement=b"short")


@pytest.mark.parametrize(
    ("flags", "key"), [(0, SigningKey.VCEK), (4, SigningKey.VLEK), (28, SigningKey.NONE), (8, None)]
)
def test_signing_key(flags: int, key: SigningKey | None) -> None:
    assert report(flags=flags).signing_key is key


def test_signature_is_little_endian() -> None:
    made = report()
    made.sign(0x0102, 0x030405)
    assert bytes(made)[0x2A0:0x2A3] == b"\x02\x01\x00"
    assert bytes(made)[0x2E8:0x2EB] == b"\x05\x04\x03"
    assert made.signature_rs == (0x0102, 0x030405)


def test_tcb_layouts() -> None:
    milan = TcbVersion.of(boot_loader=3, tee=0, snp=8, microcode=115)
    assert milan.value.to_bytes(8, "little") == bytes((3, 0, 0, 0, 0, 0, 8, 115))
    turin = TcbVersion.of(TcbLayout.TURIN, fmc=1, boot_loader=2, tee=3, snp=4, microcode=5)
    assert turin.value.to_bytes(8, "little") == bytes((1, 2, 3, 4, 0, 0, 0, 5))
    assert tcb_layout(0x19, 1) == tcb_layout(0x19, 0x11) == TcbLayout.MILAN_GENOA
    assert tcb_layout(0x1A, 2) == TcbLayout.TURIN
    with pytest.raises(FormatError, match="no part fmc"):
        TcbVersion.of(fmc=1)


@given(st.lists(st.integers(0, 255), min_size=4, max_size=4), st.lists(st.integers(0, 255), min_size=4, max_size=4))
def test_a_newer_part_does_not_make_up_for_an_older_one(one: list[int], two: list[int]) -> None:
    first, second = (
        TcbVersion.of(boot_loader=parts[0], tee=parts[1], snp=parts[2], microcode=parts[3]) for parts in (one, two)
    )
    assert first.at_least(second) == all(a >= b for a, b in zip(one, two, strict=True))


@given(st.binary(min_size=REPORT_BYTES, max_size=REPORT_BYTES))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        assert bytes(AttestationReport.parse(data)) == data
