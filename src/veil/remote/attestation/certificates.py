# SPDX-License-Identifier: GPL-2.0-or-later
"""Certificates of AMD's endorsement keys, and of those who imitate them (AMD 57230, "VCEK Certificate and KDS
Interface Specification"): ARK -> ASK -> VCEK, or ARK -> ASVK -> VLEK."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import NameOID

from veil.formats.attestation_report import SigningKey
from veil.formats.certificate_table import parse_certificates
from veil.formats.errors import FormatError
from veil.remote.attestation.certificate_encodings import certificate_ders, is_certificate_table, without_text
from veil.remote.errors import RemoteError

__all__ = [
    "CertificateChain",
    "common_name",
    "load_certificates",
    "public_bytes",
    "serial_number",
    "signed_by",
]

_MAX_CERTIFICATES = 32
_PSS_SHA384 = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=hashes.SHA384.digest_size)


def load_certificates(blob: bytes) -> list[x509.Certificate]:
    """The certificates in a blob of any form that people have (`certificate_encodings`). Raises FormatError."""
    try:
        plain = without_text(blob)
        if is_certificate_table(plain):
            found = _load_table(plain)
        else:
            found = [_load_der(der) for der in certificate_ders(plain)]
    except FormatError as error:
        raise FormatError(f"no certificate in {len(blob)} bytes: {error}") from error
    if len(found) > _MAX_CERTIFICATES:
        raise FormatError(f"{len(found)} certificates where three are needed")
    return found


def _load_table(table: bytes) -> list[x509.Certificate]:
    found = []
    for blob in parse_certificates(table).values():
        try:
            found += [_load_der(der) for der in certificate_ders(blob)]
        except FormatError:
            continue  # a CRL, or what else a host thinks useful
    return found


def _load_der(der: bytes) -> x509.Certificate:
    with warnings.catch_warnings():
        # What cryptography only warns of, such as names of a forbidden length, is nonsense to us. But AMD gives every
        # VCEK the serial number 0, which RFC 5280 does not allow: only AMD can fix that.
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        try:
            certificate = x509.load_der_x509_certificate(der)
            _read_whole(certificate)
        except Exception as error:  # of many kinds: ValueError, KeyError, TypeError, InvalidVersion, DuplicateExtension
            raise FormatError(_not_a_certificate(der)) from error
    return certificate


def _not_a_certificate(der: bytes) -> str:
    """What the library says is for programmers. People mostly gave the wrong file."""
    loaders: tuple[tuple[Callable[[bytes], object], str], ...] = (
        (x509.load_der_x509_crl, "a revocation list, which belongs to --crl"),
        (x509.load_der_x509_csr, "a request for a certificate"),
        (serialization.load_der_public_key, "a public key without a certificate"),
        (lambda data: serialization.load_der_private_key(data, None), "a private key"),
    )
    for load, what in loaders:
        try:
            load(der)
        except Exception:
            continue
        return f"it is {what}"
    return "it is DER, and no certificate that can be read (X.509, version 3)"


def _read_whole(certificate: x509.Certificate) -> None:
    """cryptography reads most of a certificate when asked for it. Whatever is wrong shall be found here, not by whoever
    compares two names."""
    _ = certificate.subject, certificate.issuer, certificate.extensions
    _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc


def common_name(name: x509.Name) -> str:
    """The CN, or an empty string."""
    values = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(values[0].value) if len(values) == 1 else ""


def serial_number(certificate: x509.Certificate) -> int:
    """Without a warning that AMD's is 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        return certificate.serial_number


def public_bytes(certificate: x509.Certificate) -> bytes:
    """DER SubjectPublicKeyInfo. Raises FormatError for keys of unknown kinds."""
    try:
        return certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except Exception as error:  # cryptography raises several kinds, and a Rust panic is none of them
        raise FormatError(f"the certificate {common_name(certificate.subject)!r} has an unknown kind of key") from error


def signed_by(issuer: x509.Certificate, signature: bytes, data: bytes) -> bool:
    """Is it RSA-PSS with SHA-384 by the issuer's key? Nothing else is accepted, whatever the certificate names."""
    try:
        key = issuer.public_key()
    except Exception:
        return False
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size < 2048:
        return False
    try:
        key.verify(signature, data, _PSS_SHA384, hashes.SHA384())
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(frozen=True)
class CertificateChain:
    """Root, intermediate and leaf, as found; `veil.remote.attestation.verify` says whether they are any good."""

    leaf: x509.Certificate
    intermediate: x509.Certificate
    root: x509.Certificate

    @classmethod
    def parse(cls, *blobs: bytes, kind: SigningKey | None = None) -> CertificateChain:
        """From certificates in any form and order, several in one blob or not. Raises RemoteError.

        `kind`: which leaf to take if there are a VCEK and a VLEK, as hosts give both.
        """
        found = [certificate for blob in blobs for certificate in load_certificates(blob)]
        return cls._sort(list(dict.fromkeys(found)), kind)

    @classmethod
    def from_certificate_table(cls, table: bytes, *more: bytes, kind: SigningKey | None = None) -> CertificateChain:
        """From what the host gave with an extended report (configfs-tsm's auxblob), and `more` as for `parse`. What is
        no table is read as certificates of another form."""
        try:
            found = _load_table(table)
        except FormatError as no_table:
            try:
                found = load_certificates(table)
            except FormatError:
                raise no_table from None
        found += [certificate for blob in more for certificate in load_certificates(blob)]
        return cls._sort(list(dict.fromkeys(found)), kind)

    @classmethod
    def _sort(cls, found: list[x509.Certificate], kind: SigningKey | None) -> CertificateChain:
        leaves = [item for item in found if _is_leaf(item)]
        if len(leaves) > 1 and kind is not None:
            leaves = [item for item in leaves if ("VLEK" in common_name(item.subject)) == (kind == SigningKey.VLEK)]
        roots = [item for item in found if item.subject == item.issuer and not _is_leaf(item)]
        if len(leaves) != 1:
            raise RemoteError(f"{len(leaves)} endorsement certificates (VCEK or VLEK) where one is needed")
        leaf = leaves[0]
        between = [item for item in found if item.subject == leaf.issuer and item not in roots and item != leaf]
        if not between:
            raise RemoteError(f"the certificate {common_name(leaf.issuer)!r}, which issued the leaf, is missing")
        # The same key may be there in several certificates: take one that leads on.
        for intermediate in between:
            for root in roots:
                if root.subject == intermediate.issuer:
                    return cls(leaf, intermediate, root)
        raise RemoteError(f"the root certificate {common_name(between[0].issuer)!r} is missing")

    @property
    def kind(self) -> SigningKey:
        """Which key the leaf is: a VLEK has a cloud provider's name in it and no chip's."""
        names = common_name(self.leaf.subject), common_name(self.intermediate.subject)
        return SigningKey.VLEK if any("VLEK" in name for name in names) else SigningKey.VCEK


def _is_leaf(certificate: x509.Certificate) -> bool:
    try:
        return isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    except Exception:
        return False
