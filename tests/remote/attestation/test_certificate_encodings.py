# SPDX-License-Identifier: GPL-2.0-or-later
"""Certificates in every form that people have, and what is said of anything else."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, pkcs7
from hypothesis import given
from hypothesis import strategies as st

from tests.remote.attestation.model_chain import MODEL, NOW, leaf_key
from veil.formats.certificate_table import ARK, ASK, CRL, VCEK, pack_certificates
from veil.formats.errors import FormatError
from veil.remote import CertificateChain
from veil.remote.attestation.certificates import load_certificates
from veil.remote.attestation.verify import verify_report

CHAIN = [MODEL.leaf, MODEL.intermediate, MODEL.root]
DERS = [item.public_bytes(Encoding.DER) for item in CHAIN]
PEM = b"".join(item.public_bytes(Encoding.PEM) for item in CHAIN)
PKCS7 = pkcs7.serialize_certificates(CHAIN, Encoding.DER)
TABLE = pack_certificates({VCEK: DERS[0], ASK: DERS[1], ARK: DERS[2]})


def armour(label: str, der: bytes) -> bytes:
    body = base64.encodebytes(der).decode()
    return f"-----BEGIN {label}-----\n{body}-----END {label}-----\n".encode()


FORMS = {
    "PEM": PEM,
    "PEM with text around it": b"Certificate:\n  Version: 3 (0x2)\n" + PEM + b"\n# the end\n",
    "PEM of Windows": b"\xef\xbb\xbf" + PEM.replace(b"\n", b"\r\n"),
    "PEM with a key and a list in it": armour("X509 CRL", MODEL.crl()) + armour("PUBLIC KEY", b"\x30\0") + PEM,
    "PEM of OpenSSL's trusted certificates": b"".join(armour("TRUSTED CERTIFICATE", der + b"\x30\x00") for der in DERS),
    "DERs in a row": b"".join(DERS),
    "DERs and zeros, as files of a device": b"".join(DERS) + bytes(100),
    "PKCS#7": PKCS7,
    "PKCS#7 as PEM": pkcs7.serialize_certificates(CHAIN, Encoding.PEM),
    "PKCS#7 as PEM of a newer name": armour("CMS", PKCS7),
    "base64": base64.b64encode(b"".join(DERS)),
    "base64 in lines": base64.encodebytes(b"".join(DERS)),
    "base64 for addresses": base64.urlsafe_b64encode(b"".join(DERS)).rstrip(b"="),
    "base64 of PKCS#7": base64.b64encode(PKCS7),
    "hexadecimal": b"".join(DERS).hex().encode(),
    "certificate table": TABLE,
    "certificate table of pages": TABLE.ljust(16384, b"\0"),
    "certificate table with PEM": pack_certificates({VCEK: PEM, CRL: MODEL.crl()}),
    "base64 of a certificate table": base64.b64encode(TABLE),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    assert sorted(map(hash, load_certificates(FORMS[form]))) == sorted(map(hash, CHAIN))
    chain = CertificateChain.parse(FORMS[form])
    verify_report(MODEL.report(), chain, roots=MODEL.roots, at=NOW).raise_for_failure()
    assert CertificateChain.from_certificate_table(FORMS[form]) == chain


KEY = leaf_key("leaf").private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
PUBLIC = leaf_key("leaf").public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
OTHERS = {
    b"": "there is nothing",
    bytes(4096): "nothing but blanks and zeros",
    b"<!DOCTYPE html><html>Too many requests</html>": "a web page",
    b'{"error": "not found"}': "JSON",
    b"HCLA" + bytes(3000): "the blob of a vTPM",
    b"no certificate at all, but some words": "neither PEM nor DER",
    MODEL.report(): "neither PEM nor DER",
    MODEL.crl(): "it is a revocation list, which belongs to --crl",
    KEY: "it is a private key",
    PUBLIC: "it is a public key without a certificate",
    armour("PRIVATE KEY", KEY): "PEM of another kind: 'PRIVATE KEY'",
    armour("X509 CRL", MODEL.crl()): "PEM of another kind: 'X509 CRL'",
    armour("CERTIFICATE", MODEL.crl()): "it is a revocation list",
    armour("CERTIFICATE", b"what?"): "what is between BEGIN and END CERTIFICATE is not DER",
    PEM.replace(b"MII", b"M!I"): "is not base64",
    PEM[:-40]: "a BEGIN line has no END line",
    PEM.replace(b"END CERT", b"END SERT"): "an END line of another kind",
    DERS[0][:-1]: "the DER is cut short: it claims",
    DERS[0][:3]: "cut short",
    DERS[0] + b"and more": "there is something else after it",
    b"\x30\x80" + DERS[0]: "a length in it is not one of DER",
    b"\x30\x03\x02\x01\x05": "no certificate that can be read",
    base64.b64encode(DERS[0]).rstrip(b"=")[:-4].ljust(1001, b"A")[:1001]: "not a length that base64",
    DERS[0].hex().encode()[:-1]: "an odd number",
    PKCS7[:40]: "cut short",
    pkcs7.serialize_certificates(CHAIN, Encoding.DER).replace(b"\xa0\x82", b"\xa1\x82"): "the PKCS#7 structure has no",
    TABLE[:40]: "the certificate table's entry",
    TABLE[:20]: "the certificate table has no end",
    b"A" * (2 << 20): "more than 1048576 bytes",
    DERS[0] * 40: "40 certificates where three are needed",
    DERS[0] * 100: "more than 64 certificates",
}


@pytest.mark.parametrize(("blob", "words"), OTHERS.items(), ids=range(len(OTHERS)))
def test_what_is_no_certificate(blob: bytes, words: str) -> None:
    with pytest.raises(FormatError) as caught:
        load_certificates(blob)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


def test_no_words_of_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever cryptography says of a structure that it does not read."""

    def fail(der: bytes) -> None:
        raise ValueError("error parsing asn1 value: ParseError { kind: InvalidTag }")

    monkeypatch.setattr("cryptography.x509.load_der_x509_certificate", fail)
    for form in FORMS:
        if "table" not in form:
            with pytest.raises(FormatError, match="no certificate that can be read"):
                load_certificates(FORMS[form])


@given(st.sampled_from(sorted(FORMS)), st.data())
def test_forms_with_one_changed_byte(form: str, data: st.DataObject) -> None:
    """Certificates or one of our errors, and never another chain that verifies."""
    changed = bytearray(FORMS[form])
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = load_certificates(bytes(changed))
    except FormatError:
        return
    assert all(item.public_bytes(Encoding.DER) for item in found)


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    for prefix in (b"", b"\x30", b"-----BEGIN CERTIFICATE-----", b"\x30\x82\x01\x00" + PKCS7[4:15], VCEK.bytes):
        try:
            assert load_certificates(prefix + data) == []
        except FormatError:
            continue


@pytest.mark.parametrize(
    "form",
    [bytes, lambda der: armour("X509 CRL", der), lambda der: armour("CRL", der), base64.encodebytes,
     lambda der: der.hex().encode()],
    ids=["DER", "PEM", "PEM of another name", "base64", "hexadecimal"],
)  # fmt: skip
def test_revocation_lists(form: Callable[[bytes], bytes]) -> None:
    result = verify_report(MODEL.report(), MODEL.chain, roots=MODEL.roots, at=NOW, crls=[form(MODEL.crl())])
    result.raise_for_failure()
    revoked = verify_report(
        MODEL.report(), MODEL.chain, roots=MODEL.roots, at=NOW, crls=[form(MODEL.crl(MODEL.ask_serial))]
    )
    assert [check.topic for check in revoked.failures] == ["revocation"]


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (b"", "there is nothing"), (DERS[0], "not an X.509 revocation list"),
        (PEM, "PEM of another kind: 'CERTIFICATE'"), (MODEL.crl() * 2, "there are several revocation lists"),
        (b"<html>", "a web page"),
    ],
)  # fmt: skip
def test_what_is_no_revocation_list(blob: bytes, words: str) -> None:
    result = verify_report(MODEL.report(), MODEL.chain, roots=MODEL.roots, at=NOW, crls=[blob])
    [check] = result.failures
    assert check.words.startswith("the revocation list is unreadable: ")
    assert words in check.words
