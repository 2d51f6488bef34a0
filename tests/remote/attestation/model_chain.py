# SPDX-License-Identifier: GPL-2.0-or-later
"""Certificate chains and reports of all generations under a root of the tests' own."""

from __future__ import annotations

import datetime
import functools
import hashlib
import warnings
from dataclasses import dataclass, field, replace

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from veil.formats.attestation_report import AttestationReport, TcbLayout, TcbVersion
from veil.remote import CertificateChain, TrustedRoots
from veil.remote.attestation.certificates import public_bytes

NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
START, END = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC), datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)
MILAN = TcbVersion.of(boot_loader=4, tee=0, snp=24, microcode=219)
TURIN = TcbVersion.of(TcbLayout.TURIN, fmc=1, boot_loader=1, tee=1, snp=4, microcode=80)
CHIP = bytes(range(1, 65))
POLICY = 0x30000


@functools.cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@functools.cache
def leaf_key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def der_integer(value: int) -> bytes:
    body = value.to_bytes(value // 128 + 1, "big")
    return b"\x02" + bytes((len(body),)) + body


def der_string(text: str) -> bytes:
    return b"\x16" + bytes((len(text),)) + text.encode()


def resigned(whole: bytes, signed: bytes, old: bytes, new: bytes, signer: str) -> bytes:
    """A certificate or revocation list, changed in what is `signed` of it, with a signature that is good again."""
    assert signed.count(old) == 1
    assert len(old) == len(new)
    changed = signed.replace(old, new)
    signature = rsa_key(signer).sign(changed, PSS, hashes.SHA384())
    return whole.replace(signed, changed)[: -len(signature)] + signature


def public_key_of(certificate: x509.Certificate) -> str:
    """As TrustedRoots names keys."""
    return hashlib.sha256(public_bytes(certificate)).hexdigest()


@dataclass(frozen=True)
class Model:
    """A machine to imitate; `replace` makes others of it."""

    tcb: TcbVersion = MILAN
    product: str = "Milan-B0"
    family: int = 0x19
    model: int = 1
    chip: bytes = CHIP
    vlek: bool = False
    start: datetime.datetime = START
    end: datetime.datetime = END
    ask_serial: int = 0x10001
    leaf_serial: int = 77
    leaf_extensions: dict[str, bytes] = field(default_factory=dict, hash=False)
    ask_is_authority: bool = True
    ark: str = "ark"
    ask: str = "ask"
    ask_name: str = "SEV-Model"
    """CN of the intermediate certificate."""
    leaf_issuer: str | None = None
    """Whom the leaf names as its issuer, if not the intermediate certificate."""

    def authority(self, subject: str, issuer: str, key: str, issuer_key: str, *, ca: bool = True) -> x509.Certificate:
        usage = x509.KeyUsage(False, False, False, False, False, ca, ca, False, False)
        builder = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer))
        builder = builder.public_key(rsa_key(key).public_key()).not_valid_before(self.start).not_valid_after(self.end)
        builder = builder.serial_number(self.ask_serial if subject != issuer else 0x10000)
        builder = builder.add_extension(x509.BasicConstraints(ca, None), True).add_extension(usage, True)
        return builder.sign(rsa_key(issuer_key), hashes.SHA384(), rsa_padding=PSS)

    @functools.cached_property
    def root(self) -> x509.Certificate:
        return self.authority("ARK-Model", "ARK-Model", self.ark, self.ark)

    @functools.cached_property
    def intermediate(self) -> x509.Certificate:
        subject = "SEV-VLEK-Model" if self.vlek else self.ask_name
        return self.authority(subject, "ARK-Model", self.ask, self.ark, ca=self.ask_is_authority)

    def extensions(self) -> dict[str, bytes]:
        parts = {"boot_loader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}
        values = {"1": der_integer(1), "2": der_string(self.product)}
        values |= {parts[part]: der_integer(value) for part, value in self.tcb.parts.items()}
        values |= {"5": der_string("a provider")} if self.vlek else {"4": self.chip}
        return {key: value for key, value in {**values, **self.leaf_extensions}.items() if value}

    @functools.cached_property
    def leaf(self) -> x509.Certificate:
        builder = x509.CertificateBuilder().subject_name(name("SEV-VLEK" if self.vlek else "SEV-VCEK"))
        issuer = self.intermediate.subject if self.leaf_issuer is None else name(self.leaf_issuer)
        builder = builder.issuer_name(issuer).public_key(leaf_key("leaf").public_key())
        builder = builder.not_valid_before(self.start).not_valid_after(self.end).serial_number(self.leaf_serial or 1)
        for oid, value in self.extensions().items():
            extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(f"1.3.6.1.4.1.3704.1.{oid}"), value)
            builder = builder.add_extension(extension, False)
        made = builder.sign(rsa_key(self.ask), hashes.SHA384(), rsa_padding=PSS)
        return made if self.leaf_serial else self._with_serial_0(made)

    def _with_serial_0(self, made: x509.Certificate) -> x509.Certificate:
        """As AMD's VCEKs; cryptography reads such certificates, but makes none."""
        whole = made.public_bytes(serialization.Encoding.DER)
        one = b"\xa0\x03\x02\x01\x02\x02\x01\x01"
        der = resigned(whole, made.tbs_certificate_bytes, one, one[:-1] + b"\0", self.ask)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return x509.load_der_x509_certificate(der)

    @functools.cached_property
    def chain(self) -> CertificateChain:
        return CertificateChain(self.leaf, self.intermediate, self.root)

    @functools.cached_property
    def roots(self) -> TrustedRoots:
        return TrustedRoots.amd().with_software_root(self.root.public_bytes(serialization.Encoding.DER))

    def report(self, signer: str | None = "leaf", /, **fields: int | bytes) -> bytes:
        numbers: dict[str, int] = {
            "version": 3, "policy": POLICY, "signature_algorithm": 1, "vmpl": 0, "current_tcb": self.tcb.value,
            "reported_tcb": self.tcb.value, "committed_tcb": self.tcb.value, "launch_tcb": self.tcb.value,
            "flags": int(self.vlek) << 2, "cpuid_family": self.family, "cpuid_model": self.model,
        }  # fmt: skip
        numbers |= {field: value for field, value in fields.items() if isinstance(value, int)}
        if numbers["version"] == 2:
            numbers["cpuid_family"] = numbers["cpuid_model"] = 0
        made = AttestationReport(**numbers)
        data = {"chip_id": self.chip.ljust(64, b"\0"), "measurement": b"m" * 48, "report_data": b"d" * 64}
        made.set_bytes(**data | {field: value for field, value in fields.items() if isinstance(value, bytes)})
        if signer is not None:
            made.sign(*decode_dss_signature(leaf_key(signer).sign(made.signed_bytes, ec.ECDSA(hashes.SHA384()))))
        return bytes(made)

    def crl(self, *revoked: int, signer: str | None = None, issued: datetime.datetime = NOW, days: int = 30) -> bytes:
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.root.subject)
        builder = builder.last_update(issued).next_update(issued + datetime.timedelta(days=days))
        for serial in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(issued).build()
            builder = builder.add_revoked_certificate(entry)
        signed = builder.sign(rsa_key(signer or self.ark), hashes.SHA384(), rsa_padding=PSS)
        return signed.public_bytes(serialization.Encoding.DER)


MODEL = Model()
TURIN_MODEL = replace(MODEL, tcb=TURIN, product="Turin-B0", family=0x1A, model=2, chip=b"\x11" * 8)
VLEK_MODEL = replace(MODEL, vlek=True)
