# SPDX-License-Identifier: GPL-2.0-or-later
"""The model's own chip and its endorsement: ARK -> ASK -> VCEK, with the real certificates' algorithms and extensions.

AMD's chain (AMD 57230, "VCEK Certificate and KDS Interface"): ARK and ASK are RSA-4096 with PSS and SHA-384, the VCEK
is ECDSA P-384 and carries chip ID and TCB version in extensions. This chain says in every subject and in the chip ID
that it belongs to a software machine; nothing that it signs can verify under AMD's roots, whose keys we do not have.
"""

from __future__ import annotations

import datetime
import os
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import NameOID

from veil.disk import is_full
from veil.formats.attestation_report import TcbVersion
from veil.formats.certificate_table import ARK, ASK, VCEK, VCEK_OID, pack_certificates
from veil.private_files import make_folder, write_private
from veil.snp.errors import SnpError

__all__ = ["CHIP_ID_MARK", "PRODUCT", "Endorsement"]

#: Every model chip's ID starts with these bytes; a genuine one is a hash.
CHIP_ID_MARK = b"VEIL SOFTWARE MACHINE, NO HARDWARE"
#: PRODUCT_NAME in the VCEK.
PRODUCT = "Veil-A0"

_CHIP_ID_BYTES = 64
_RSA_BITS = 4096
_YEARS = 25
_VCEK_YEARS = 7
_FILES = ("ark.key", "ask.key", "chip.id", "chip.secret", "ark.pem", "ask.pem")
_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=hashes.SHA384.digest_size)


@dataclass(frozen=True)
class Endorsement:
    """The chip's identity and keys. One per installation (`load`), or one for a test (`generate`)."""

    ark: x509.Certificate
    ask: x509.Certificate
    vcek: x509.Certificate
    vcek_key: ec.EllipticCurvePrivateKey
    chip_id: bytes
    #: what derived keys come from; it never leaves the chip
    chip_secret: bytes
    ark_key: rsa.RSAPrivateKey
    ask_key: rsa.RSAPrivateKey

    @classmethod
    def generate(cls, tcb: TcbVersion, *, born: datetime.datetime | None = None) -> Endorsement:
        """A new chip under a new root, made now or at another time. RSA keys take a second or two."""
        ark_key = rsa.generate_private_key(65537, _RSA_BITS)
        ask_key = rsa.generate_private_key(65537, _RSA_BITS)
        return cls.certified(ark_key, ask_key, tcb, born=born)

    @classmethod
    def certified(
        cls,
        ark_key: rsa.RSAPrivateKey,
        ask_key: rsa.RSAPrivateKey,
        tcb: TcbVersion,
        *,
        born: datetime.datetime | None = None,
    ) -> Endorsement:
        """A new chip, with certificates of these authorities' keys made now or at another time."""
        ark_name, ask_name = _name("ARK-Veil"), _name("SEV-Veil")
        born = born or datetime.datetime.now(datetime.UTC)
        ark = _authority(ark_name, ark_name, ark_key, ark_key, path_length=1, born=born)
        ask = _authority(ask_name, ark_name, ask_key, ark_key, path_length=0, born=born)
        return cls._with_chip(ark, ask, ark_key, ask_key, tcb, born)

    @classmethod
    def _with_chip(
        cls,
        ark: x509.Certificate,
        ask: x509.Certificate,
        ark_key: rsa.RSAPrivateKey,
        ask_key: rsa.RSAPrivateKey,
        tcb: TcbVersion,
        born: datetime.datetime,
    ) -> Endorsement:
        chip_id = CHIP_ID_MARK + os.urandom(_CHIP_ID_BYTES - len(CHIP_ID_MARK))
        key = ec.generate_private_key(ec.SECP384R1())
        vcek = _vcek(key, ask.subject, ask_key, chip_id, tcb, born)
        return cls(ark, ask, vcek, key, chip_id, os.urandom(32), ark_key, ask_key)

    @classmethod
    def load(cls, directory: Path, tcb: TcbVersion) -> Endorsement:
        """The installation's chip, made at the first call. Raises SnpError if its files are unreadable.

        As on real chips, the VCEK depends on the TCB version: another version has another key.
        """
        if not directory.exists():
            cls.generate(tcb)._save(directory)
        vcek_key_file, vcek_file = (directory / f"vcek-{tcb.value:016x}.{suffix}" for suffix in ("key", "pem"))
        try:
            content = {name: (directory / name).read_bytes() for name in _FILES}
            ark, ask = (x509.load_pem_x509_certificate(content[name]) for name in ("ark.pem", "ask.pem"))
            ark_key, ask_key = (_own_key(content[name]) for name in _FILES[:2])
            if not isinstance(ark_key, rsa.RSAPrivateKey) or not isinstance(ask_key, rsa.RSAPrivateKey):
                raise ValueError("not RSA keys")
            if not vcek_file.exists():
                made = ec.generate_private_key(ec.SECP384R1())
                now = datetime.datetime.now(datetime.UTC)
                certificate = _vcek(made, ask.subject, ask_key, content["chip.id"], tcb, now)
                write_private(vcek_key_file, _private(made))
                write_private(vcek_file, _pem(certificate))
            vcek_key = _own_key(vcek_key_file.read_bytes())
            vcek = x509.load_pem_x509_certificate(vcek_file.read_bytes())
            if not isinstance(vcek_key, ec.EllipticCurvePrivateKey) or vcek_key.public_key() != vcek.public_key():
                raise ValueError("the VCEK is of another key")
        except (OSError, ValueError) as error:
            raise SnpError(
                f"the software machine's keys in {directory} are unusable ({error}): remove the folder for new ones "
                "(reports made with the old ones stay valid under the old root)"
            ) from error
        return cls(ark, ask, vcek, vcek_key, content["chip.id"], content["chip.secret"], ark_key, ask_key)

    def _save(self, directory: Path) -> None:
        content = {
            "ark.key": _private(self.ark_key),
            "ask.key": _private(self.ask_key),
            "chip.id": self.chip_id,
            "chip.secret": self.chip_secret,
            "ark.pem": _pem(self.ark),
            "ask.pem": _pem(self.ask),
        }
        try:
            make_folder(directory.parent)
            # Whole or not at all, and one of two processes that do this at the same time wins.
            with tempfile.TemporaryDirectory(dir=directory.parent) as name:
                made = Path(name) / directory.name
                make_folder(made)
                for file, data in content.items():
                    write_private(made / file, data, durable=True)
                try:
                    made.rename(directory)
                except OSError:
                    if not directory.exists():
                        raise
        except OSError as error:
            why = "the disk is full" if is_full(error) else error.strerror
            raise SnpError(
                f"cannot keep the software machine's keys in {directory}: {why} (XDG_DATA_HOME moves them)"
            ) from error

    @property
    def certificate_table(self) -> bytes:
        """What a host gives with extended reports."""
        blobs: dict[uuid.UUID, bytes] = {
            VCEK: self.vcek.public_bytes(serialization.Encoding.DER),
            ASK: self.ask.public_bytes(serialization.Encoding.DER),
            ARK: self.ark.public_bytes(serialization.Encoding.DER),
        }
        return pack_certificates(blobs)


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "Software machine without hardware protection"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Veil"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    born: datetime.datetime,
    years: int,
) -> x509.CertificateBuilder:
    # The model's clock may be a little ahead of its user's.
    start = born.replace(microsecond=0) - datetime.timedelta(days=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=365 * years))
    )


def _authority(
    subject: x509.Name,
    issuer: x509.Name,
    key: rsa.RSAPrivateKey,
    issuer_key: rsa.RSAPrivateKey,
    *,
    path_length: int,
    born: datetime.datetime,
) -> x509.Certificate:
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = _builder(subject, issuer, key.public_key(), born, _YEARS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    builder = builder.add_extension(usage, critical=True)
    # As on AMD's ARK and ASK; a VCEK has neither.
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    if issuer_key is not key:
        named = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
        builder = builder.add_extension(named, critical=False)
    return builder.sign(issuer_key, hashes.SHA384(), rsa_padding=_PSS)


def _vcek(
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: rsa.RSAPrivateKey,
    chip_id: bytes,
    tcb: TcbVersion,
    born: datetime.datetime,
) -> x509.Certificate:
    builder = _builder(_name("SEV-VCEK"), issuer, key.public_key(), born, _VCEK_YEARS)
    values = {
        "1": _der_integer(0),  # the structure's version: 1 is Turin's, with an FMC's part
        "2": b"\x16" + bytes((len(PRODUCT),)) + PRODUCT.encode(),
        "3.1": _der_integer(tcb.parts["boot_loader"]),
        "3.2": _der_integer(tcb.parts["tee"]),
        "3.3": _der_integer(tcb.parts["snp"]),
        **{f"3.{number}": _der_integer(0) for number in (4, 5, 6, 7)},
        "3.8": _der_integer(tcb.parts["microcode"]),
        "4": chip_id,
    }
    for suffix, value in values.items():
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(VCEK_OID + suffix), value)
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(issuer_key, hashes.SHA384(), rsa_padding=_PSS)


def _der_integer(value: int) -> bytes:
    body = value.to_bytes(value.bit_length() // 8 + 1, "big")
    return b"\x02" + bytes((len(body),)) + body


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _own_key(pem: bytes) -> PrivateKeyTypes:
    """A key that `_private` wrote, to a file that is closed to others; raises ValueError.

    Whether an RSA key's primes are primes is not asked again: it takes 0.4 s a key, of every machine that makes a
    report.
    """
    return serialization.load_pem_private_key(pem, None, unsafe_skip_rsa_key_validation=True)


def _private(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
