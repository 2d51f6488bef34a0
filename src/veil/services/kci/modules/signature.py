# SPDX-License-Identifier: GPL-2.0-or-later
"""The signature at the end of a module's file: who signed it.

A signed file is body, PKCS#7 message, `struct module_signature`, marker (Linux, kernel/module_signature.c and
scripts/sign-file.c). The message is CMS SignedData (RFC 5652) in the one form in which distributions sign: one signer,
named by issuer and serial number, no certificates, no attributes, so the signature is over the body itself. All other
forms are refused: what is not there cannot be misread.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from veil.services.kci.modules.errors import ModuleRefused

__all__ = ["MARKER", "Keyring", "Signer", "split_signature", "verify_signature"]

MARKER = b"~Module signature appended~\n"
#: u8 algo, u8 hash, u8 id_type, u8 signer_len, u8 key_id_len, 3 bytes padding, u32 sig_len (big endian)
_MODULE_SIGNATURE = struct.Struct(">BBBBB3sI")
_PKEY_ID_PKCS7 = 2
_MAX_MESSAGE = 16 << 10
_MIN_RSA_BITS = 2048

_OID = x509.ObjectIdentifier
_SIGNED_DATA, _DATA = _OID("1.2.840.113549.1.7.2"), _OID("1.2.840.113549.1.7.1")
_RSA = _OID("1.2.840.113549.1.1.1")


class _Digest:
    """A hash, and how signatures over it are named."""

    def __init__(self, algorithm: hashes.HashAlgorithm, rsa_oid: str, ecdsa_oid: str) -> None:
        self.algorithm = algorithm
        self.rsa = (_RSA, _OID(rsa_oid))
        self.ecdsa = (_OID(ecdsa_oid),)


_DIGESTS = {
    _OID("2.16.840.1.101.3.4.2.1"): _Digest(hashes.SHA256(), "1.2.840.113549.1.1.11", "1.2.840.10045.4.3.2"),
    _OID("2.16.840.1.101.3.4.2.2"): _Digest(hashes.SHA384(), "1.2.840.113549.1.1.12", "1.2.840.10045.4.3.3"),
    _OID("2.16.840.1.101.3.4.2.3"): _Digest(hashes.SHA512(), "1.2.840.113549.1.1.13", "1.2.840.10045.4.3.4"),
}


# RFC 5652, sections 3 to 5, without the parts that must not be there.


@asn1.sequence
class _AlgorithmIdentifier:
    algorithm: x509.ObjectIdentifier
    parameters: asn1.Null | None


@asn1.sequence
class _IssuerAndSerialNumber:
    issuer: asn1.TLV
    serial_number: int


@asn1.sequence
class _SignerInfo:
    version: int
    sid: _IssuerAndSerialNumber
    digest_algorithm: _AlgorithmIdentifier
    signature_algorithm: _AlgorithmIdentifier
    signature: bytes


@asn1.sequence
class _EncapsulatedContentInfo:
    content_type: x509.ObjectIdentifier


@asn1.sequence
class _SignedData:
    version: int
    digest_algorithms: asn1.SetOf[_AlgorithmIdentifier]
    encapsulated: _EncapsulatedContentInfo
    signer_infos: asn1.SetOf[_SignerInfo]


@asn1.sequence
class _ContentInfo:
    content_type: x509.ObjectIdentifier
    content: Annotated[_SignedData, asn1.Explicit(0)]


@dataclass(frozen=True)
class Signer:
    """Whose key it was: the certificate's subject in words, and its SHA-256."""

    name: str
    fingerprint: bytes


class Keyring:
    """Certificates whose keys may sign modules. Nobody vouches for them but the policy: each is taken as it is, without
    chain and dates, as the kernel takes those that are built into it."""

    def __init__(self, certificates: Iterable[x509.Certificate]) -> None:
        self._found = {(_name(item.issuer), item.serial_number): item for item in certificates}

    def __len__(self) -> int:
        return len(self._found)

    @classmethod
    def of_kernel(cls, certificate_list: bytes) -> Keyring:
        """From the kernel's `system_certificate_list`: DER certificates one after the other. Raises ModuleRefused."""
        return cls(_split_certificates(certificate_list))

    def with_certificates(self, certificates: Iterable[bytes]) -> Keyring:
        """The same and others (DER). Raises ModuleRefused."""
        return Keyring([*self._found.values(), *map(_load_certificate, certificates)])

    def find(self, issuer: bytes, serial_number: int) -> x509.Certificate | None:
        """By the issuer's name (content of the DER sequence) and serial number."""
        return self._found.get((issuer, serial_number))


def split_signature(file: bytes) -> tuple[memoryview, bytes] | None:
    """(body, PKCS#7 message) of a module's file; None if no signature is appended. Raises ModuleRefused."""
    if not file.endswith(MARKER):
        return None
    end = len(file) - len(MARKER) - _MODULE_SIGNATURE.size
    if end < 0:
        raise ModuleRefused("the file ends before its signature begins")
    *zeros, length = _MODULE_SIGNATURE.unpack_from(file, end)
    if zeros != [0, 0, _PKEY_ID_PKCS7, 0, 0, bytes(3)]:
        raise ModuleRefused("the signature is not a PKCS#7 message")
    if not 0 < length <= min(end, _MAX_MESSAGE):
        raise ModuleRefused(f"the signature claims {length} bytes")
    return memoryview(file)[: end - length], file[end - length : end]


def verify_signature(body: bytes | memoryview, message: bytes, keyring: Keyring) -> Signer:
    """Who of the keyring signed `body`, by the PKCS#7 `message`. Raises ModuleRefused."""
    signed = _decode(message)
    infos, digests = signed.signer_infos.as_list(), signed.digest_algorithms.as_list()
    if len(infos) != 1 or len(digests) != 1:
        raise ModuleRefused(f"the signature has {len(infos)} signers and {len(digests)} hashes, not one of each")
    (info,), (named,) = infos, digests
    digest = _DIGESTS.get(info.digest_algorithm.algorithm)
    if digest is None or named.algorithm != info.digest_algorithm.algorithm:
        raise ModuleRefused("the signature's hash is not SHA-256, SHA-384 or SHA-512, or not the same everywhere")
    certificate = keyring.find(bytes(info.sid.issuer.data), info.sid.serial_number)
    if certificate is None:
        raise ModuleRefused(f"signed by a key that is not allowed: serial number {info.sid.serial_number:x}")
    _check(certificate, digest, info, hashlib.new(digest.algorithm.name, body).digest())
    return Signer(certificate.subject.rfc4514_string(), certificate.fingerprint(hashes.SHA256()))


def _decode(message: bytes) -> _SignedData:
    try:
        content: _ContentInfo = asn1.decode_der(_ContentInfo, message)
    except ValueError as error:
        raise ModuleRefused("the signature is not a CMS message with signers by issuer and serial number, without "
                            "attributes, certificates and content") from error  # fmt: skip
    signed = content.content
    if (content.content_type, signed.encapsulated.content_type) != (_SIGNED_DATA, _DATA):
        raise ModuleRefused("the signature is not CMS SignedData over plain data")
    if signed.version != 1 or any(info.version != 1 for info in signed.signer_infos.as_list()):
        raise ModuleRefused("the signature's CMS version is not 1")
    return signed


def _check(certificate: x509.Certificate, digest: _Digest, info: _SignerInfo, value: bytes) -> None:
    key, oid = certificate.public_key(), info.signature_algorithm.algorithm
    hashed = Prehashed(digest.algorithm)
    try:
        if isinstance(key, ec.EllipticCurvePublicKey) and oid in digest.ecdsa:
            key.verify(info.signature, value, ec.ECDSA(hashed))
        elif isinstance(key, rsa.RSAPublicKey) and oid in digest.rsa and key.key_size >= _MIN_RSA_BITS:
            key.verify(info.signature, value, padding.PKCS1v15(), hashed)
        else:
            raise ModuleRefused(f"the signature's algorithm {oid.dotted_string} does not fit the signer's key")
    except InvalidSignature as error:
        raise ModuleRefused("the signature is not over this file") from error


def _split_certificates(data: bytes) -> list[x509.Certificate]:
    """As x509_load_certificate_list (crypto/asymmetric_keys/x509_loader.c) does."""
    found, at = [], 0
    while at < len(data):
        if data[at : at + 2] != b"\x30\x82" or len(data) - at < 4:
            raise ModuleRefused(f"the kernel's certificate list is damaged at byte {at}")
        end = at + 4 + int.from_bytes(data[at + 2 : at + 4], "big")
        if end > len(data):
            raise ModuleRefused(f"the kernel's certificate list ends within the certificate at byte {at}")
        found.append(_load_certificate(data[at:end]))
        at = end
    return found


def _load_certificate(data: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(data)
        certificate.subject.rfc4514_string()
        certificate.public_key()
    except Exception as error:  # the library names no common base for what it finds wrong with keys
        raise ModuleRefused(f"a certificate is not valid: {error}") from error
    return certificate


def _name(name: x509.Name) -> bytes:
    sequence: asn1.TLV = asn1.decode_der(asn1.TLV, name.public_bytes())
    return bytes(sequence.data)
