# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of a certificate chain: root, signatures, times, revocation."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from veil.formats.errors import FormatError
from veil.remote.attestation.certificate_encodings import revocation_list_der
from veil.remote.attestation.certificates import CertificateChain, common_name, public_bytes, serial_number, signed_by
from veil.remote.attestation.checks import Checklist
from veil.remote.attestation.roots import TrustedRoots

__all__ = ["check_chain"]

_UNKNOWN_ROOT = (
    "its key is neither AMD's (Milan, Genoa, Turin) nor that of a software machine which was accepted explicitly"
)


def check_chain(
    checks: Checklist,
    chain: CertificateChain,
    roots: TrustedRoots,
    at: datetime.datetime,
    crls: Sequence[bytes],
) -> str | None:
    """Returns what machine the root vouches for; None unless root, signatures and forms are good."""
    machine = _root(checks, chain, roots)
    sound = _signatures(checks, chain)
    sound = _forms(checks, chain) and sound
    _times(checks, chain, at)
    if crls:
        _revocation(checks, chain, crls, at)
    return machine if sound else None


def _root(checks: Checklist, chain: CertificateChain, roots: TrustedRoots) -> str | None:
    name = common_name(chain.root.subject)
    try:
        key = public_bytes(chain.root)
        machine, advice = roots.machine(key), roots.advice(key)
    except FormatError as error:
        checks.add("root", False, "", str(error))
        return None
    checks.add(
        "root",
        machine is not None,
        f"{name!r} is a trusted root, for machines of kind: {machine}",
        f"{name!r} is not a trusted root: {advice or _UNKNOWN_ROOT}",
    )
    return machine


def _signatures(checks: Checklist, chain: CertificateChain) -> bool:
    good = True
    pairs = ((chain.root, chain.root), (chain.intermediate, chain.root), (chain.leaf, chain.intermediate))
    for certificate, issuer in pairs:
        subject, by = common_name(certificate.subject), common_name(issuer.subject)
        good &= checks.add(
            f"signature of {subject}",
            signed_by(issuer, certificate.signature, certificate.tbs_certificate_bytes),
            f"{subject!r} is signed by {by!r}",
            f"{subject!r} is not signed by the key of {by!r} (RSA-PSS with SHA-384)",
            topic="signature",
        )
    return good


def _forms(checks: Checklist, chain: CertificateChain) -> bool:
    """What each certificate may be used for, and whom it names as its issuer."""
    wrong = []
    for certificate, issuer in ((chain.leaf, chain.intermediate), (chain.intermediate, chain.root)):
        if certificate.issuer != issuer.subject:
            names = common_name(certificate.subject), common_name(certificate.issuer), common_name(issuer.subject)
            wrong.append("{!r} names {!r} as its issuer, not {!r}".format(*names))
    for certificate in (chain.root, chain.intermediate):
        name = common_name(certificate.subject)
        try:
            if not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
                wrong.append(f"{name!r} may not issue certificates")
            usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
            if not usage.key_cert_sign:
                wrong.append(f"{name!r} may not sign certificates")
        except x509.ExtensionNotFound:
            wrong.append(f"{name!r} does not say that it may issue certificates")
        except ValueError:
            wrong.append(f"{name!r} has unreadable extensions")
    key = chain.leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        wrong.append("the endorsement key is not one of ECDSA P-384")
    return checks.add("certificates", not wrong, "each certificate is what its place asks for", "; ".join(wrong))


def _times(checks: Checklist, chain: CertificateChain, at: datetime.datetime) -> None:
    wrong = []
    for certificate in (chain.leaf, chain.intermediate, chain.root):
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        name = common_name(certificate.subject)
        if at < start:
            wrong.append(f"{name!r} is not valid before {start:%Y-%m-%d}")
        elif at > end:
            wrong.append(f"{name!r} expired on {end:%Y-%m-%d}")
    when = f"{at:%Y-%m-%d %H:%M} UTC"
    checks.add("validity", not wrong, f"all certificates are valid at {when}", f"at {when}: {'; '.join(wrong)}")


def _revocation(checks: Checklist, chain: CertificateChain, crls: Sequence[bytes], at: datetime.datetime) -> None:
    for number, blob in enumerate(crls, 1):
        name = "revocation" if len(crls) == 1 else f"revocation {number}"
        try:
            crl = _load_crl(blob)
            checks.add(name, *_against(chain, crl, at), topic="revocation")
        except FormatError as error:
            checks.add(name, False, "", str(error), topic="revocation")


def _load_crl(blob: bytes) -> x509.CertificateRevocationList:
    """Raises FormatError. As with certificates, all that is read later is read here."""
    try:
        der = revocation_list_der(blob)
    except FormatError as error:
        raise FormatError(f"the revocation list is unreadable: {error}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            crl = x509.load_der_x509_crl(der)
            _ = crl.issuer, crl.last_update_utc, crl.next_update_utc, crl.extensions
        except Exception as error:  # of many kinds, as with certificates
            raise FormatError("the revocation list is unreadable: it is not an X.509 revocation list") from error
    return crl


def _against(
    chain: CertificateChain, crl: x509.CertificateRevocationList, at: datetime.datetime
) -> tuple[bool, str, str]:
    root = common_name(chain.root.subject)
    if not signed_by(chain.root, crl.signature, crl.tbs_certlist_bytes):
        return False, "", f"the revocation list of {common_name(crl.issuer)!r} is not signed by {root!r}"
    if at < crl.last_update_utc:
        return False, "", f"the revocation list is from {crl.last_update_utc:%Y-%m-%d}, after the time of the check"
    if crl.next_update_utc is not None and at > crl.next_update_utc:
        return False, "", f"the revocation list is out of date since {crl.next_update_utc:%Y-%m-%d}: get a new one"
    # AMD's lists name ASKs and ASVKs. VCEKs all have the serial number 0, which says nothing about one of them.
    for certificate in (chain.intermediate, chain.leaf):
        serial = serial_number(certificate)
        if serial and crl.get_revoked_certificate_by_serial_number(serial) is not None:
            return False, "", f"the certificate {common_name(certificate.subject)!r} was revoked by {root!r}"
    return True, f"no certificate is on the revocation list of {root!r} from {crl.last_update_utc:%Y-%m-%d}", ""
