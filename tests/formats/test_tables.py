# SPDX-License-Identifier: GPL-2.0-or-later
"""Certificate tables and services manifests: what is written is read, and nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from veil.formats.certificate_table import ARK, ASK, VCEK, pack_certificates, parse_certificates
from veil.formats.errors import FormatError
from veil.formats.services_manifest import (
    CHANNEL_SERVICE,
    SERVICES_MANIFEST,
    attested_report_data,
    pack_manifest,
    parse_manifest,
)

blobs = st.dictionaries(st.uuids(), st.binary(min_size=1, max_size=50), max_size=8)


@given(blobs)
def test_certificates(entries: dict[uuid.UUID, bytes]) -> None:
    table = pack_certificates(entries)
    assert parse_certificates(table) == entries
    assert parse_certificates(table.ljust(16384, b"\0")) == entries


def test_certificate_guids_are_big_endian() -> None:
    assert pack_certificates({VCEK: b"x"}).startswith(bytes.fromhex("63da758de6644564adc5f4b93be8accd"))


def test_no_certificates() -> None:
    assert parse_certificates(b"") == parse_certificates(bytes(4096)) == {}


def entry(guid: uuid.UUID, offset: int, length: int) -> bytes:
    return guid.bytes + offset.to_bytes(4, "little") + length.to_bytes(4, "little")


@pytest.mark.parametrize(
    "table",
    [
        entry(VCEK, 48, 4) + bytes(24),  # nothing there
        entry(VCEK, 0, 4) + bytes(24) + b"cert",  # in the list itself
        entry(VCEK, 48, 0) + bytes(24) + b"cert",
        entry(VCEK, 0xFFFFFFFF, 0xFFFFFFFF) + bytes(24) + b"cert",
        entry(VCEK, 72, 4) + entry(VCEK, 72, 4) + bytes(24) + b"cert",
        entry(VCEK, 24, 1),
        b"".join(entry(uuid.UUID(int=n), 1000, 4) for n in range(1, 40)) + bytes(1000),
        b"x",
    ],
)
def test_bad_certificate_tables(table: bytes) -> None:
    with pytest.raises(FormatError):
        parse_certificates(table)


@given(st.binary(max_size=200))
def test_any_certificate_table(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        parse_certificates(data)


@given(st.dictionaries(st.uuids(), st.binary(max_size=50), max_size=8))
def test_manifests(services: dict[uuid.UUID, bytes]) -> None:
    data = pack_manifest(services)
    assert parse_manifest(data) == services


def test_manifest_guids_are_mixed_endian() -> None:
    assert pack_manifest({}) == bytes.fromhex("bb9e8463923d7046a1ff58f9c94b87bb") + b"\x18\0\0\0\0\0\0\0"


_SERVICES = st.dictionaries(st.uuids(), st.binary(max_size=20), max_size=4)
#: what may be wrong with a field of 4 bytes: by how much it is off
_WRONG = st.integers(-24, 24).filter(bool)


@given(_SERVICES)
def test_manifests_are_read_as_they_were_packed(services: dict[uuid.UUID, bytes]) -> None:
    assert parse_manifest(pack_manifest(services)) == services


@settings(max_examples=examples(100))
@given(_SERVICES, st.data(), _WRONG)
def test_one_set_of_services_has_one_encoding(services: dict[uuid.UUID, bytes], data: st.DataObject, off: int) -> None:
    """Right but for one number: a length, an offset, a count. Whatever is read, its own encoding is what was given."""
    packed = bytearray(pack_manifest(services))
    header = data.draw(st.integers(0, len(services)))
    at = header * 24 + data.draw(st.sampled_from((16, 20)))
    number = (int.from_bytes(packed[at : at + 4], "little") + off) % (1 << 32)
    packed[at : at + 4] = number.to_bytes(4, "little")
    with pytest.raises(FormatError):
        parse_manifest(bytes(packed))


def test_a_manifest_that_claims_too_many_services() -> None:
    with pytest.raises(FormatError, match="claims"):
        parse_manifest(SERVICES_MANIFEST.bytes_le + (24).to_bytes(4, "little") + (0xFFFFFFFF).to_bytes(4, "little"))


@given(st.dictionaries(st.uuids(), st.binary(max_size=20), min_size=1, max_size=4), st.data())
def test_changed_manifests(services: dict[uuid.UUID, bytes], data: st.DataObject) -> None:
    packed = bytearray(pack_manifest(services))
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(FormatError):
        assert parse_manifest(bytes(packed)) != services


def test_report_data() -> None:
    nonce, manifest = bytes(range(64)), pack_manifest({CHANNEL_SERVICE: b"key"})
    assert attested_report_data(nonce, manifest) == hashlib.sha512(nonce + manifest).digest()
    with pytest.raises(FormatError, match="64 bytes"):
        attested_report_data(nonce[:63], nonce[63:] + manifest)


def test_the_chain_of_a_host() -> None:
    assert len({VCEK, ASK, ARK}) == 3
