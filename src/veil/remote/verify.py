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
    PlatformInfo,
    SigningKey,
    TcbLayout,
    TcbVersion,
    tcb_layout,
)
from veil.formats.errors import FormatError
from veil.remote.certificates import CertificateChain, EndorsementExtensions
from veil.remote.chain_checks import check_chain
from veil.remote.checks import Check, Checklist
from veil.remote.errors import RemoteError, VerificationFailed
from veil.remote.policy import Policy
from veil.remote.policy_checks import check_policy
from veil.remote.roots import SOFTWARE, TrustedRoots

__all__ = ["Verification", "verify_report"]

_UNKNOWN = "unknown"
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
    report: bytes,
    chain: CertificateChain,
    *,
    policy: Policy | None = None,
    roots: TrustedRoots | None = None,
    at: datetime.datetime | None = None,
    crls: Sequence[bytes] = (),
) -> Verification:
    """Check a report of 1184 bytes down to a trusted root, by default one of AMD's.

    `at`: when the certificates must be valid, by default now; without a zone it is UTC. Raises FormatError if the
    report is none.
    """
    parsed = AttestationReport.parse(report)
    policy = policy or Policy()
    when = datetime.datetime.now(datetime.UTC) if at is None else _utc(at)
    checks = Checklist()
    machine = check_chain(checks, chain, roots or TrustedRoots.amd(), when, crls)
    signed = _signature(checks, parsed, chain)
    _signing_key(checks, parsed, chain, policy)
    layout, product = _endorsement(checks, parsed, chain, machine)
    _reserved(checks, parsed)
    _tcb_order(checks, parsed, layout, policy)
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
    _processor(checks, report, product, machine)
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
    checks.add(
        "chip ID",
        known and report.chip_id == hwid.ljust(_LONG_HWID, b"\0"),
        f"report and certificate name the same chip ({hwid.hex()[:16]}...)",
        f"the report is from the chip {report.chip_id.hex()[:16]}..., "
        f"the certificate for {hwid.hex()[:16] or 'none'}...",
    )


def _line(report: AttestationReport) -> str:
    """The product line by CPUID (AMD 57230, table 13)."""
    family, model = report.cpuid_family, report.cpuid_model
    if family == 0x19:
        return {0x0: "Milan", 0x1: "Genoa", 0xA: "Genoa"}.get(model >> 4, _UNKNOWN)
    return "Turin" if family == 0x1A and model >> 4 in (0x0, 0x1) else _UNKNOWN


def _processor(checks: Checklist, report: AttestationReport, product: str, machine: str | None) -> None:
    if machine is None:
        checks.skip("processor", "the chain proves nothing")
        return
    if machine == SOFTWARE:
        checks.add("processor", True, f"a software machine ({product}): whoever runs it can do what he likes", "")
        return
    line = machine.removeprefix("AMD ")
    fits = product == line or (line == "Genoa" and product in ("Bergamo", "Siena"))
    if report.has_cpuid:
        fits = fits and _line(report) == line
    found = f"CPUID family {report.cpuid_family:#x}, model {report.cpuid_model:#x}" if report.has_cpuid else "no CPUID"
    checks.add(
        "processor",
        fits,
        f"product {product} under the root of {machine}; {found}",
        f"the root is that of {machine}, the certificate is for {product}, the report has {found}",
    )


def _reserved(checks: Checklist, report: AttestationReport) -> None:
    """What a version does not define must be zero: a newer report under an older number would be misread."""
    data = report.signed_bytes
    must_be_zero = [(0x4C, 0x50), (0x18B, 0x1A0), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x208, 0x2A0)]
    if not report.has_cpuid:
        must_be_zero.append((0x188, 0x18B))
    if not report.has_mitigations:
        must_be_zero.append((0x1F8, 0x208))
    spoilt = [f"{start:#x}" for start, end in must_be_zero if any(data[start:end])]
    if report.flags >> 5:
        spoilt.append("flags")
    if report.platform_info & ~int(sum(PlatformInfo)):
        spoilt.append("platform info")
    checks.add(
        "reserved fields",
        not spoilt,
        f"the report has nothing that version {report.version} does not define",
        f"the report has values where version {report.version} has none: {', '.join(spoilt)}",
    )


def _tcb_order(checks: Checklist, report: AttestationReport, layout: TcbLayout, policy: Policy) -> None:
    current, committed, reported = (
        TcbVersion(value, layout) for value in (report.current_tcb, report.committed_tcb, report.reported_tcb)
    )
    wrong = []
    if not current.at_least(reported):
        wrong.append("it reports a newer TCB version than it runs")
    if not current.at_least(committed):
        wrong.append("it committed a newer TCB version than it runs")
    elif current != committed and not policy.allow_provisional_firmware:
        wrong.append("its firmware is not committed: an older one may take its place")
    versions = [
        (report.committed_major, report.committed_minor, report.committed_build),
        (report.current_major, report.current_minor, report.current_build),
    ]
    if versions[0] > versions[1] or (versions[0] != versions[1] and not policy.allow_provisional_firmware):
        wrong.append(f"firmware {_dotted(versions[1])} runs, {_dotted(versions[0])} is committed")
    checks.add(
        "firmware",
        not wrong,
        f"firmware {_dotted(versions[1])} with the TCB version {current} is committed",
        "the machine's firmware: " + "; ".join(wrong),
    )


def _dotted(version: tuple[int, int, int]) -> str:
    return f"{version[0]}.{version[1]} build {version[2]}"
