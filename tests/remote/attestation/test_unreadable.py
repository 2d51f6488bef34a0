# SPDX-License-Identifier: GPL-2.0-or-later
"""Certificates, revocation lists and policies that are broken where a library looks late: findings of `make fuzz`."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tests.remote.attestation.model_chain import MODEL, NOW
from veil.formats.certificate_table import ARK, ASK, CRL, VCEK, pack_certificates
from veil.formats.errors import FormatError
from veil.remote import CertificateChain, Policy, RemoteError
from veil.remote.attestation.certificates import load_certificates
from veil.remote.attestation.verify import verify_report

_START = datetime.datetime(2026, 1, 1)
_MARK = b"UNIQUE NAME"


def _name() -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _MARK.decode())])


def _certificate() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    end = _START + datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(_name(), _name(), key.public_key(), 1, _START, end)
    for last in (1, 2):
        oid = x509.ObjectIdentifier(f"1.3.6.1.4.1.3704.1.3.{last}")
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, b"\2\1\0"), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def _changed(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    assert len(old) == len(new)
    return data.replace(old, new)


_NAME = b"\x0c" + bytes((len(_MARK),)) + _MARK
_VERSION = b"\xa0\x03\x02\x01"
_OID = b"\x2b\x06\x01\x04\x01\x9c\x78\x01\x03"
#: what is wrong -> bytes of a good certificate and what takes their place
_BROKEN = {
    "a name that is not UTF-8": (_NAME, _NAME[:-1] + b"\xff"),
    "a name of a type that is none": (_NAME, b"\x21" + _NAME[1:]),
    "a name that is a BIT STRING": (_NAME, b"\x03" + _NAME[1:2] + b"\0" + _NAME[3:]),
    "an unknown version": (_VERSION + b"\x02", _VERSION + b"\x0b"),
    "an extension twice": (_OID + b"\2", _OID + b"\1"),
    "a time that is none": (b"260101000000Z", b"269901000000Z"),
}


@pytest.mark.parametrize("what", _BROKEN)
def test_broken_certificates_are_none(what: str) -> None:
    blob = _changed(_certificate(), *_BROKEN[what])
    with pytest.raises(FormatError, match="no certificate in"):
        load_certificates(blob)
    # What else a host put into its table does not matter; without the leaf there is no chain.
    chain = MODEL.chain
    good = {VCEK: chain.leaf, ASK: chain.intermediate, ARK: chain.root}
    table = {guid: item.public_bytes(Encoding.DER) for guid, item in good.items()}
    assert CertificateChain.from_certificate_table(pack_certificates({**table, CRL: blob})) == chain
    with pytest.raises(RemoteError, match="0 endorsement certificates"):
        CertificateChain.from_certificate_table(pack_certificates({**table, VCEK: blob}))


def _revocation_list() -> bytes:
    end = _START + datetime.timedelta(days=1)
    builder = x509.CertificateRevocationListBuilder(_name(), _START, end)
    return builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (_NAME, b"\x21" + _NAME[1:]),
        (_NAME, _NAME[:-1] + b"\xff"),
        (b"\x02\x01\x01\x30", b"\x02\x01\x03\x30"),
        (b"260101000000Z", b"269901000000Z"),
    ],
    ids=["a name of a type that is none", "a name that is not UTF-8", "an unknown version", "a time that is none"],
)
def test_broken_revocation_lists_fail(old: bytes, new: bytes) -> None:
    blob = _changed(_revocation_list(), old, new)
    result = verify_report(MODEL.report(), MODEL.chain, roots=MODEL.roots, at=NOW, crls=[blob])
    [check] = result.failures
    assert check.name == "revocation"
    assert check.words.startswith("the revocation list is unreadable: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vmpl = " + "[" * 5000, "is not valid TOML"),
        ("vmpl = " + "{ a = " * 2000, "is not valid TOML"),
        ("vmpl = " + "9" * 5000, "is not valid TOML"),
        ("vmpl" + ".a" * 10000 + " = 1", "has more than 16384 bytes"),
    ],
    ids=["brackets", "braces", "digits", "long key"],
)
def test_policies_that_nobody_wrote_by_hand(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(RemoteError, match=words):
        Policy.load(path)
