# SPDX-License-Identifier: GPL-2.0-or-later
"""Is an attestation report genuine, and does it say what its user demands?

Everything here is the attacker's until it is verified. All checks are made and listed, so that one sees all that is
wrong at once; only a signature by a trusted root's chain makes the rest worth reading.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from veil.formats.attestation_report import (
    AttestationReport,
    SigningKey,
    TcbLayout,
    TcbVersion,
    tcb_layout,
)
from veil.formats.errors import FormatError
from veil.formats.hcl_report import RuntimeData
from veil.remote.attestation.certificates import CertificateChain, EndorsementExtensions
from veil.remote.attestation.chain_checks import check_chain
from veil.remote.attestation.checks import Check, Checklist
from veil.remote.attestation.policy import Policy
from veil.remote.attestation.policy_checks import check_policy
from veil.remote.attestation.report_checks import check_firmware, check_unknown_fields
from veil.remote.attestation.report_forms import ReportFile
from veil.remote.attestation.roots import SOFTWARE, TrustedRoots
from veil.remote.errors import RemoteError, VerificationFailed

__all__ = ["Verification", "verify_report"]

_UNKNOWN = "unknown"
#: Processors of a root's line: family, upper four bits of the model, and products (AMD 57230, table 13).
_LINES: dict[str, tuple[int, tuple[int, ...], tuple[str, ...]]] = {
    "Milan": (0x19, (0x0,), ("Milan",)),
    "Genoa": (0x19, (0x1, 0xA), ("Genoa", "Bergamo", "Siena")),
    "Turin": (0x1A, (0x0, 0x1), ("Turin",)),
}
#: Turin's chips have IDs of 8 bytes; reports have room for 64.
_SHORT_HWID = 8
_LONG_HWID = 64


@dataclass(frozen=True)
class Verification:
    """The outcome. `machine` is what the root vouches for if chain and report are signed as they should be:
    "AMD Milan", "AMD Genoa", "AMD Turin" or "software"; otherwise it is "unknown"."""

    report: AttestationReport
    chain: CertificateChain
    machine: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Did every check succeed?"""
        return all(check.ok for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that did not."""
        return tuple(check for check in self.checks if not check.ok)

    def raise_for_failure(self) -> None:
        """VerificationFailed unless all is well."""
        if not self.ok:
            raise VerificationFailed("; ".join(f"{check.name}: {check.words}" for check in self.failures))


def verify_report(
    report: bytes | ReportFile,
    chain: CertificateChain,
    *,
    policy: Policy | None = None,
    roots: TrustedRoots | None = None,
    at: datetime.datetime | None = None,
    crls: Sequence[bytes] = (),
) -> Verification:
    """Check a report down to a trusted root, by default one of AMD's.

    `report`: 1184 bytes, or what `read_report` made of a file; runtime data that came with it must be bound by it.
    `at`: when the certificates must be valid, by default now; without a zone it is UTC. Raises FormatError if the
    report is none.
    """
    file = report if isinstance(report, ReportFile) else ReportFile(report)
    parsed = AttestationReport.parse(file.report)
    policy = policy or Policy()
    when = datetime.datetime.now(datetime.UTC) if at is None else _utc(at)
    checks = Checklist()
    machine = check_chain(checks, chain, roots or TrustedRoots.amd(), when, crls)
    signed = _signature(checks, parsed, chain)
    _signing_key(checks, parsed, chain, policy)
    layout, product = _endorsement(checks, parsed, chain, machine)
    if file.in_vtpm_blob:
        _runtime_data(checks, parsed, file.runtime_data)
    check_unknown_fields(checks, parsed, layout, policy)
    check_firmware(checks, parsed, layout, policy)
    check_policy(checks, parsed, policy, TcbVersion(parsed.reported_tcb, layout), product)
    # AMD's chains are public. Without a signature of the report they say nothing of the machine that it is from.
    return Verification(parsed, chain, machine if machine and signed else _UNKNOWN, checks.done())


def _utc(at: datetime.datetime) -> datetime.datetime:
    if at.tzinfo is None:
        return at.replace(tzinfo=datetime.UTC)
    try:
        return at.astimezone(datetime.UTC)
    except OverflowError as error:
        raise RemoteError(f"the time {at} has no name in UTC") from error


def _signature(checks: Checklist, report: AttestationReport, chain: CertificateChain) -> bool:
    if report.chip_key_masked or report.signing_key == SigningKey.NONE:
        return checks.add("report signature", False, "", "the report is not signed: the host masked the chip's key")
    key = chain.leaf.public_key()
    ok = False
    if isinstance(key, ec.EllipticCurvePublicKey):
        try:
            signature = encode_dss_signature(*report.signature_rs)
            key.verify(signature, report.signed_bytes, ec.ECDSA(hashes.SHA384()))
            ok = True
        except (InvalidSignature, ValueError):
            pass
    return checks.add(
        "report signature",
        ok,
        f"the report is signed by the {chain.kind.name}",
        f"the report is not signed by the {chain.kind.name} of the chain: it was changed, or is from another machine",
    )


def _signing_key(checks: Checklist, report: AttestationReport, chain: CertificateChain, policy: Policy) -> None:
    said = report.signing_key
    ok = said == chain.kind and (policy.allow_vlek or chain.kind != SigningKey.VLEK)
    checks.add(
        "signing key",
        ok,
        f"the report and its chain agree on a {chain.kind.name}",
        f"the report says {'a reserved value' if said is None else said.name}, the chain ends in a {chain.kind.name}"
        + ("" if policy.allow_vlek else "; a VLEK is not accepted"),
    )


def _endorsement(
    checks: Checklist, report: AttestationReport, chain: CertificateChain, machine: str | None
) -> tuple[TcbLayout, str]:
    """The leaf's extensions against the report."""
    fallback = tcb_layout(report.cpuid_family, report.cpuid_model)
    try:
        extensions = EndorsementExtensions.of(chain.leaf)
    except FormatError as error:
        checks.add("endorsement", False, "", str(error))
        for name in ("TCB", "chip ID", "processor"):
            checks.skip(name, "the endorsement certificate is unusable")
        return fallback, _UNKNOWN
    product = extensions.product.partition("-")[0]
    layout = extensions.layout
    reported = TcbVersion(report.reported_tcb, layout)
    checks.add(
        "TCB",
        extensions.tcb == reported,
        f"the key is the one of the reported TCB version ({reported})",
        f"the certificate is for another TCB version ({extensions.tcb}) than the report's ({reported})",
    )
    _chip(checks, report, chain, extensions)
    _processor(checks, report, product, layout, machine)
    return layout, product


def _chip(
    checks: Checklist, report: AttestationReport, chain: CertificateChain, extensions: EndorsementExtensions
) -> None:
    if chain.kind == SigningKey.VLEK:
        # A VLEK is a cloud provider's, loaded into many chips.
        checks.add(
            "chip ID",
            extensions.hwid is None and extensions.csp_id is not None,
            f"the key is one of the provider {extensions.csp_id!r}, for no chip in particular",
            "the VLEK's certificate names a chip, or no provider",
        )
        return
    hwid = extensions.hwid or b""
    known = len(hwid) in (_SHORT_HWID, _LONG_HWID) and any(hwid)
    # The host can mask CHIP_ID. The report is signed all the same, by the key of the chip that the certificate names.
    masked = not any(report.chip_id)
    checks.add(
        "chip ID",
        known and (masked or report.chip_id == hwid.ljust(_LONG_HWID, b"\0")),
        f"the host masked CHIP_ID in the report; the key that signed it is the one of the chip {hwid.hex()[:16]}..."
        if masked
        else f"report and certificate name the same chip ({hwid.hex()[:16]}...)",
        f"the report is from the chip {report.chip_id.hex()[:16]}..., "
        f"the certificate for {hwid.hex()[:16] or 'none'}...",
        note=masked,
    )


def _processor(
    checks: Checklist, report: AttestationReport, product: str, layout: TcbLayout, machine: str | None
) -> None:
    """Root, certificate and CPUID against each other.

    The root vouches for the line. A model or product that is not known fits if it is not known as another line's: AMD
    makes more of a line. Another family would mean that other bytes are what is read here as the TCB version.
    """
    if machine is None:
        checks.skip("processor", "the chain proves nothing")
        return
    if machine == SOFTWARE:
        checks.add("processor", True, f"a software machine ({product}): whoever runs it can do what he likes", "")
        return
    line = machine.removeprefix("AMD ")
    family, models, products = _LINES[line]
    others = [other for name, other in _LINES.items() if name != line]
    fits = layout == (TcbLayout.TURIN if line == "Turin" else TcbLayout.MILAN_GENOA)
    fits = fits and not any(product in names for _, _, names in others)
    known = product in products
    if report.has_cpuid:
        model = report.cpuid_model >> 4
        fits = fits and report.cpuid_family == family
        fits = fits and not any(family == other and model in taken for other, taken, _ in others)
        known = known and model in models
    found = f"CPUID family {report.cpuid_family:#x}, model {report.cpuid_model:#x}" if report.has_cpuid else "no CPUID"
    checks.add(
        "processor",
        fits,
        f"product {product} under the root of {machine}; {found}{'' if known else ': not known here, and of its line'}",
        f"the root is that of {machine}, the certificate is for {product}, the report has {found}",
        note=not known,
    )


def _runtime_data(checks: Checklist, report: AttestationReport, found: RuntimeData | None) -> None:
    """What the paravisor of an Azure CVM put beside the report. Not signed: only its hash in REPORT_DATA counts."""
    if found is None:
        checks.add("runtime data", True, "the vTPM's blob has no runtime data: only the report counts", "", note=True)
        return
    checks.add(
        "runtime data",
        report.report_data == found.report_data(),
        f"REPORT_DATA binds the vTPM's runtime data ({len(found.data)} bytes, {found.hash_type.name})",
        f"REPORT_DATA is not the {found.hash_type.name} of the vTPM's runtime data ({len(found.data)} bytes): "
        "the data was changed, or belongs to another report",
    )
