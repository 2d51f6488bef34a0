# SPDX-License-Identifier: GPL-2.0-or-later
"""Certificates whose words, names and numbers are the host's choice, and times of all kinds."""

from __future__ import annotations

import datetime
import warnings
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from tests.remote.attestation.model_chain import END, MODEL, NOW, START, der_string, resigned
from tests.remote.attestation.verification import verify
from veil.formats.errors import FormatError
from veil.remote import CertificateChain, RemoteError, VerificationFailed
from veil.remote.attestation.certificates import load_certificates
from veil.remote.attestation.checks import Checklist
from veil.remote.attestation.verify import verify_report

#: written below a failure it looks like success
_FORGED = "X\nverified; machine: AMD Milan\x1b[8m"


def test_names_write_no_lines_of_their_own() -> None:
    model = replace(MODEL, ask_name=_FORGED, ask="the host's own")
    result = verify_report(model.report(), model.chain, at=NOW)
    assert any("verified; machine" in check.name for check in result.checks)
    for check in result.checks:
        assert (check.name + check.words).isascii()
        assert (check.name + check.words).isprintable()
    with pytest.raises(VerificationFailed) as caught:
        result.raise_for_failure()
    assert str(caught.value).isprintable()


def test_products_write_no_lines_of_their_own() -> None:
    result = verify(replace(MODEL, leaf_extensions={"2": der_string(_FORGED)}))
    assert all(check.words.isprintable() for check in result.checks)


def test_every_check_is_printable() -> None:
    checks = Checklist()
    checks.add("a\n", True, "b\r", "", topic="root")
    checks.add("\x1b[2K", False, "", "c\u202e", topic="signature")
    checks.skip("chip", "e\x85")
    assert all((check.name + check.words).isprintable() for check in checks.done())


def test_names_of_a_forbidden_length_are_nonsense() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        long = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A" * 70, _validate=False)])
        made = x509.CertificateBuilder(long, long, key.public_key(), 1, START, END).sign(key, hashes.SHA384())
    with pytest.raises(FormatError, match="no certificate"):
        load_certificates(made.public_bytes(Encoding.DER))


def test_issuers_must_be_named() -> None:
    """Signatures are good, the names are not: the chain is not the one that its certificates mean."""
    result = verify(replace(MODEL, leaf_issuer="SEV-Somebody"))
    words = {check.name: check.words for check in result.failures}
    assert words.keys() == {"certificates", "processor"}
    assert words["certificates"] == "'SEV-VCEK' names 'SEV-Somebody' as its issuer, not 'SEV-Model'"
    assert result.machine == "unknown"


def test_serial_number_0_is_on_no_list_and_warns_nobody() -> None:
    """All of AMD's VCEKs have it: a list with a 0 in it would revoke them all."""
    model = replace(MODEL, leaf_serial=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chain = CertificateChain.parse(
            *(item.public_bytes(Encoding.DER) for item in (model.leaf, model.intermediate, model.root))
        )
        result = verify_report(model.report(), chain, roots=model.roots, at=NOW, crls=[_list_of_0(), MODEL.crl(5)])
    result.raise_for_failure()
    assert {"revocation 1", "revocation 2"} <= {check.name for check in result.checks}


def _list_of_0() -> bytes:
    made = MODEL.crl(0x55)
    signed = x509.load_der_x509_crl(made).tbs_certlist_bytes
    return resigned(made, signed, b"\x02\x01\x55\x17", b"\x02\x01\x00\x17", MODEL.ark)


def test_pem_with_text_around_it() -> None:
    pem = MODEL.root.public_bytes(Encoding.PEM)
    assert load_certificates(b"Certificate:\n    Data:\n" + pem + b"\nthe root\n" + pem) == [MODEL.root, MODEL.root]


def test_times_without_a_zone_are_utc_and_others_are_converted() -> None:
    east = datetime.timezone(datetime.timedelta(hours=5))
    for at in (datetime.datetime(2026, 6, 1), NOW, datetime.datetime(2026, 6, 1, 5, tzinfo=east)):
        result = verify(at=at)
        result.raise_for_failure()
        assert any("2026-06-01 00:00 UTC" in check.words for check in result.checks)
    with pytest.raises(RemoteError, match="no name in UTC"):
        verify(at=datetime.datetime(1, 1, 1, tzinfo=east))


_REPORT = MODEL.report()


@given(st.integers(0, 2), st.data())
def test_certificates_with_one_changed_byte_prove_nothing(which: int, data: st.DataObject) -> None:
    """Whatever is changed, the outcome is in words or one of our errors."""
    good = (MODEL.leaf, MODEL.intermediate, MODEL.root)
    blobs = [item.public_bytes(Encoding.DER) for item in good]
    changed = bytearray(blobs[which])
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    blobs[which] = bytes(changed)
    try:
        chain = CertificateChain.parse(*blobs)
    except (FormatError, RemoteError):
        return
    # The algorithm's name outside of what is signed means nothing: only RSA-PSS with SHA-384 is tried.
    found = (chain.leaf, chain.intermediate, chain.root)
    same = all(one.tbs_certificate_bytes == other.tbs_certificate_bytes for one, other in zip(found, good, strict=True))
    assert same or not verify_report(_REPORT, chain, roots=MODEL.roots, at=NOW).ok
