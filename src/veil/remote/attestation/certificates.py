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

from veil.formats.attestation_report import SigningKey, TcbLayout, TcbVersion
from veil.formats.certificate_table import VCEK_OID, parse_certificates
from veil.formats.errors import FormatError
from veil.remote.attestation.certificate_encodings import certificate_ders, is_certificate_table, without_text
from veil.remote.errors import RemoteError

__all__ = [
    "CertificateChain",
    "EndorsementExtensions",
    "common_name",
    "load_certificates",
    "public_bytes",
    "serial_number",
    "signed_by",
]

_MAX_CERTIFICATES = 32
_PSS_SHA384 = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=hashes.SHA384.digest_size)
_PARTS = {"boot_loader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8"}
_FMC = "3.9"
#: Parts that no generation known here has: bytes 2 to 5 of a TCB_VERSION, zero.
_NO_PARTS = ("3.4", "3.5", "3.6", "3.7")


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
class EndorsementExtensions:
    """What a VCEK or VLEK says of its processor."""

    product: str
    parts: dict[str, int]
    hwid: bytes | None
    csp_id: str | None

    @classmethod
    def of(cls, certificate: x509.Certificate) -> EndorsementExtensions:
        """Raises FormatError unless all that must be there is, once, in the one right form."""
        values = _values(certificate)
        parts = {name: _integer(values, suffix) for name, suffix in _PARTS.items()}
        if _FMC in values:
            parts["fmc"] = _integer(values, _FMC)
        for suffix in values:
            known = suffix in (*_PARTS.values(), _FMC) or (suffix in _NO_PARTS and _integer(values, suffix) == 0)
            if suffix.startswith("3.") and not known:
                raise FormatError(f"the endorsement certificate has a TCB part that is not known ({VCEK_OID}{suffix})")
        csp = _string(values, "5") if "5" in values else None
        return cls(_string(values, "2"), parts, values.get("4"), csp)

    @property
    def layout(self) -> TcbLayout:
        """Turin's have a part more."""
        return TcbLayout.TURIN if "fmc" in self.parts else TcbLayout.MILAN_GENOA

    @property
    def tcb(self) -> TcbVersion:
        """The TCB version that the key is bound to."""
        return TcbVersion.of(self.layout, **self.parts)


def _values(certificate: x509.Certificate) -> dict[str, bytes]:
    try:
        extensions = certificate.extensions
    except ValueError as error:
        raise FormatError("the endorsement certificate's extensions are unreadable") from error
    values: dict[str, bytes] = {}
    for extension in extensions:
        name = extension.oid.dotted_string
        if name.startswith(VCEK_OID) and isinstance(extension.value, x509.UnrecognizedExtension):
            values[name.removeprefix(VCEK_OID)] = extension.value.value
    return values


def _integer(values: dict[str, bytes], suffix: str) -> int:
    data = values.get(suffix)
    if data is None:
        raise FormatError(f"the endorsement certificate lacks the extension {VCEK_OID}{suffix}")
    value = int.from_bytes(data[2:], "big")
    # DER INTEGER of 0 to 255; a value from 128 on has a zero before it.
    if value > 255 or data != bytes((2, value // 128 + 1)) + value.to_bytes(value // 128 + 1, "big"):
        raise FormatError(f"the endorsement certificate's extension {VCEK_OID}{suffix} is not a number from 0 to 255")
    return value


def _string(values: dict[str, bytes], suffix: str) -> str:
    data = values.get(suffix, b"")
    if len(data) < 2 or data[0] not in (0x16, 0x0C) or data[1] != len(data) - 2 or data[1] > 127:
        raise FormatError(f"the endorsement certificate's extension {VCEK_OID}{suffix} is not a string")
    try:
        return data[2:].decode("ascii")
    except ValueError as error:
        raise FormatError(
            f"the endorsement certificate's extension {VCEK_OID}{suffix} is not an ASCII string"
        ) from error


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
