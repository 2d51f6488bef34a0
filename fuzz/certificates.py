# SPDX-License-Identifier: GPL-2.0-or-later
"""Certificates: the host's table and the chain in it, a leaf's extensions, revocation lists."""

from __future__ import annotations

import base64
import datetime
import functools
import uuid
from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID

from fuzz.target import Target
from fuzz.world import endorsement, genuine_machines, software_machine
from veil.formats.certificate_table import ARK, ASK, CRL, VCEK, VLEK, pack_certificates, parse_certificates
from veil.remote.attestation.certificate_encodings import revocation_list_der
from veil.remote.attestation.certificates import CertificateChain, load_certificates
from veil.remote.attestation.endorsement import Endorsement
from veil.remote.attestation.verify import verify_report

__all__ = ["TARGETS"]

_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=hashes.SHA384.digest_size)
_DER, _PEM = serialization.Encoding.DER, serialization.Encoding.PEM
_MAX_ENTRIES = 32


def _signed_parts(chain: CertificateChain) -> list[bytes]:
    return [item.tbs_certificate_bytes for item in (chain.leaf, chain.intermediate, chain.root)]


def _table(data: bytes) -> None:
    found = parse_certificates(data)
    assert len(found) <= _MAX_ENTRIES
    assert all(0 < len(blob) <= len(data) for blob in found.values())
    assert parse_certificates(pack_certificates(found)) == found
    chain = CertificateChain.from_certificate_table(data)
    ours = software_machine()
    verified = verify_report(ours.reports[0], chain, roots=ours.roots)
    # The machine's own certificates prove its report, and no others.
    assert not verified.ok or _signed_parts(chain) == _signed_parts(ours.chain)


def _table_seeds() -> Iterable[bytes]:
    yield endorsement().certificate_table
    yield endorsement().certificate_table.ljust(8192, b"\0")
    yield _packed(software_machine().chain, _PEM)
    for machine in genuine_machines():
        yield _packed(machine.chain, _DER)


# Certificates in a file of any form. A mutated file may have other certificates in it; only ours prove our report.


def _forms(data: bytes) -> None:
    found = load_certificates(data)
    assert all(item.public_bytes(_DER)[:1] == b"\x30" for item in found)
    chain = CertificateChain.parse(data)
    ours = software_machine()
    verified = verify_report(ours.reports[0], chain, roots=ours.roots)
    assert not verified.ok or _signed_parts(chain) == _signed_parts(ours.chain)


def _form_seeds() -> Iterable[bytes]:
    for machine in (software_machine(), *genuine_machines()):
        chain = [machine.chain.leaf, machine.chain.intermediate, machine.chain.root]
        row = b"".join(item.public_bytes(_DER) for item in chain)
        yield row
        yield b"".join(item.public_bytes(_PEM) for item in chain)
        yield base64.encodebytes(row)
        yield pkcs7.serialize_certificates(chain, _DER)
        yield pkcs7.serialize_certificates(chain, _PEM)


def _packed(chain: CertificateChain, encoding: serialization.Encoding) -> bytes:
    return pack_certificates(
        {
            VCEK: chain.leaf.public_bytes(encoding),
            ASK: chain.intermediate.public_bytes(encoding),
            ARK: chain.root.public_bytes(encoding),
        }
    )


# A leaf's extensions. An input is a list of {one byte that chooses the extension, one of its length, its bytes}, put
# into a certificate here: mutations of DER hardly ever change a length and all those around it.

_OID = "1.3.6.1.4.1.3704.1."
_SUFFIXES = ("1", "2", "3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "3.7", "3.8", "3.9", "4", "5")
_NUMBERS = {"boot_loader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}
_START = datetime.datetime(2026, 1, 1)


@functools.cache
def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _cut(data: bytes) -> dict[str, bytes]:
    values: dict[str, bytes] = {}
    at = 0
    while at + 2 <= len(data):
        suffix, length = _SUFFIXES[data[at] % len(_SUFFIXES)], data[at + 1]
        values[suffix] = data[at + 2 : at + 2 + length]
        at += 2 + length
    return values


def _extensions(data: bytes) -> None:
    values = _cut(data)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SEV-VCEK")])
    builder = x509.CertificateBuilder(name, name, _key().public_key(), 1, _START, _START + datetime.timedelta(days=1))
    for suffix, value in values.items():
        oid = x509.ObjectIdentifier(_OID + suffix)
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
    found = Endorsement.of(builder.sign(_key(), hashes.SHA256()))
    for part, number in found.parts.items():
        assert values[_NUMBERS[part]] == _integer(number)
    assert found.product.encode() == values["2"][2:]
    assert found.tcb.parts == found.parts


def _integer(number: int) -> bytes:
    return bytes((2, 1, number)) if number < 128 else bytes((2, 2, 0, number))


def _extension_seeds() -> Iterable[bytes]:
    for machine in (software_machine(), *genuine_machines()):
        seed = b""
        for index, suffix in enumerate(_SUFFIXES):
            for extension in machine.chain.leaf.extensions:
                value = extension.value
                if isinstance(value, x509.UnrecognizedExtension) and extension.oid.dotted_string == _OID + suffix:
                    seed += bytes((index, len(value.value))) + value.value
        yield seed
        yield seed + bytes((_SUFFIXES.index("3.9"), 4, 2, 2, 0, 200))
        yield seed + bytes((_SUFFIXES.index("5"), 6)) + b"\x0c\x04Veil"


# Revocation lists. An input: a byte, not 0 if the root shall sign what follows (the root itself may be the attacker's),
# then a list.

_SIGN = b"\1"


@functools.cache
def _lists() -> tuple[x509.CertificateRevocationList, ...]:
    """One that names nobody, one that names the intermediate."""
    keys = endorsement()
    start, end = keys.ark.not_valid_before_utc, keys.ark.not_valid_after_utc
    builder = x509.CertificateRevocationListBuilder(keys.ark.subject, start, end)
    revoked = x509.RevokedCertificateBuilder(keys.ask.serial_number, start).build()
    builders = builder, builder.add_revoked_certificate(revoked)
    return tuple(item.sign(keys.ark_key, hashes.SHA384(), rsa_padding=_PSS) for item in builders)


def _load_list(data: bytes) -> x509.CertificateRevocationList:
    return x509.load_der_x509_crl(revocation_list_der(data))


def _signed(data: bytes) -> bytes:
    """A list with a signature that is right for it."""
    try:
        found = _load_list(data)
    except Exception:
        return data
    body = found.tbs_certlist_bytes
    signature = endorsement().ark_key.sign(body, _PSS, hashes.SHA384())
    known = _lists()[0]
    # What is between body and signature in a list of ours: its algorithm and the signature's tag and length.
    whole, ours = known.public_bytes(_DER), known.tbs_certlist_bytes
    between = whole[whole.index(ours) + len(ours) : -len(known.signature)]
    content = body + between + signature
    return b"\x30\x82" + len(content).to_bytes(2, "big") + content


def _revocation(data: bytes) -> None:
    ours, sign, data = software_machine(), data[:1] == _SIGN, data[1:]
    verified = verify_report(ours.reports[0], ours.chain, roots=ours.roots, crls=[_signed(data) if sign else data])
    if verified.ok and not sign:
        # Only the root's own list says that nobody was revoked.
        assert _load_list(data).tbs_certlist_bytes == _lists()[0].tbs_certlist_bytes
    if verified.ok:
        revoked = {item.serial_number for item in _load_list(data)}
        assert not revoked & {item.serial_number for item in (ours.chain.leaf, ours.chain.intermediate)}


def _revocation_seeds() -> Iterable[bytes]:
    for item in _lists():
        yield bytes(1) + item.public_bytes(_DER)
        yield bytes(1) + item.public_bytes(_PEM)
        yield _SIGN + item.public_bytes(_DER)


_GUIDS = tuple(guid.bytes for guid in (VCEK, VLEK, ASK, ARK, CRL, uuid.UUID(int=0)))
_FORM_WORDS = (
    b"-----BEGIN ", b"-----END ", b"CERTIFICATE-----", b"PKCS7-----", b"\x30\x80", b"\x30\x84\xff\xff\xff\xff",
    b"\xa0\x82", bytes.fromhex("06092a864886f70d010702"),
)  # fmt: skip
TARGETS = (
    Target("certificate-table", _table, _table_seeds, words=_GUIDS, max_bytes=8192),
    Target("certificate-forms", _forms, _form_seeds, words=_FORM_WORDS, max_bytes=12288),
    Target("endorsement-extensions", _extensions, _extension_seeds, max_bytes=512),
    Target("revocation-list", _revocation, _revocation_seeds, max_bytes=2048),
)
