# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of a report itself: who signed it, from which chip and processor, and what it says of their firmware."""

from __future__ import annotations

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
from veil.formats.hcl_report import RuntimeData
from veil.remote.attestation.certificates import CertificateChain
from veil.remote.attestation.checks import Checklist
from veil.remote.attestation.endorsement import Endorsement
from veil.remote.attestation.policy import Policy
from veil.remote.attestation.report_encodings import ReportFile
from veil.remote.attestation.roots import SOFTWARE

__all__ = ["ReportedMachine", "check_report"]

_UNKNOWN_PRODUCT = "unknown"
#: Processors of a root's line: family, upper four bits of the model, and products (AMD 57230, table 13).
_LINES: dict[str, tuple[int, tuple[int, ...], tuple[str, ...]]] = {
    "Milan": (0x19, (0x0,), ("Milan",)),
    "Genoa": (0x19, (0x1, 0xA), ("Genoa", "Bergamo", "Siena")),
    "Turin": (0x1A, (0x0, 0x1), ("Turin",)),
}
_KEY_INFO_BITS = 5
_PROVISIONAL = ", so that it can be rolled back (allow_provisional_firmware)"


@dataclass(frozen=True)
class ReportedMachine:
    """What report and endorsement certificate say of the machine. Unless `signed`, it may be anybody's word."""

    signed: bool
    """by the key that the chain ends in"""
    product: str
    """the product of the certificate, or "unknown"."""
    reported_tcb: TcbVersion


def check_report(
    checks: Checklist,
    file: ReportFile,
    report: AttestationReport,
    chain: CertificateChain,
    machine: str | None,
    policy: Policy,
) -> ReportedMachine:
    """`report` is that of `file`; `machine` is what the chain's root vouches for, as `check_chain` returns it."""
    signed = _signature(checks, report, chain)
    _signing_key(checks, report, chain, policy)
    layout, product = _endorsement(checks, report, chain, machine)
    if file.in_vtpm_blob:
        _runtime_data(checks, report, file.runtime_data)
    _unknown_fields(checks, report, layout, policy)
    _firmware(checks, report, layout, policy)
    return ReportedMachine(signed, product, TcbVersion(report.reported_tcb, layout))


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
        endorsement = Endorsement.of(chain.leaf)
    except FormatError as error:
        checks.add("endorsement", False, "", str(error))
        for name in ("TCB", "chip ID", "processor"):
            checks.skip(name, "the endorsement certificate is unusable")
        return fallback, _UNKNOWN_PRODUCT
    product = endorsement.product.partition("-")[0]
    layout = endorsement.layout
    reported = TcbVersion(report.reported_tcb, layout)
    checks.add(
        "TCB",
        endorsement.tcb == reported,
        f"the key is the one of the reported TCB version ({reported})",
        f"the certificate is for another TCB version ({endorsement.tcb}) than the report's ({reported})",
    )
    _chip(checks, report, chain, endorsement)
    _processor(checks, report, product, layout, machine)
    return layout, product


def _chip(checks: Checklist, report: AttestationReport, chain: CertificateChain, endorsement: Endorsement) -> None:
    if chain.kind == SigningKey.VLEK:
        # A VLEK is a cloud provider's, loaded into many chips.
        checks.add(
            "chip ID",
            endorsement.hwid is None and endorsement.csp_id is not None,
            f"the key is one of the provider {endorsement.csp_id!r}, for no chip in particular",
            "the VLEK's certificate names a chip, or no provider",
        )
        return
    chip = endorsement.chip_id
    named = (endorsement.hwid or b"").hex()[:16]
    # The host can mask CHIP_ID. The report is signed all the same, by the key of the chip that the certificate names.
    masked = not any(report.chip_id)
    checks.add(
        "chip ID",
        chip is not None and (masked or report.chip_id == chip),
        f"the host masked CHIP_ID in the report; the key that signed it is the one of the chip {named}..."
        if masked
        else f"report and certificate name the same chip ({named}...)",
        f"the report is from the chip {report.chip_id.hex()[:16]}..., the certificate for {named or 'none'}...",
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
        checks.add("processor", True, f"a software machine ({product}): its operator can do anything", "")
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


def _unknown_fields(checks: Checklist, report: AttestationReport, layout: TcbLayout, policy: Policy) -> None:
    """What the report's version does not define: newer firmware describes more, in places that were empty before.

    The chip signed it, so nobody put it there; what is defined keeps its meaning as long as the version does. Unknown
    bits of the guest policy and of the reported TCB version are judged elsewhere, and are failures.
    """
    data = report.signed_bytes
    empty = [(0x4C, 0x50), (0x18B, 0x1A0), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x208, 0x2A0)]
    if not report.has_cpuid:
        empty.append((0x188, 0x18B))
    if not report.has_mitigations:
        empty.append((0x1F8, 0x208))
    found = [f"bytes at {start:#x}" for start, end in sorted(empty) if any(data[start:end])]
    found += _bits("platform info", report.platform_info & ~int(sum(PlatformInfo)))
    found += _bits("key info", report.flags >> _KEY_INFO_BITS << _KEY_INFO_BITS)
    for name in ("current_tcb", "committed_tcb", "launch_tcb"):
        if any(TcbVersion(getattr(report, name), layout).reserved.values()):
            found.append(f"a part of the {name.replace('_', ' ').replace('tcb', 'TCB')}")
    words = f"not known in a report of version {report.version}: {', '.join(found)}"
    checks.add(
        "reserved fields",
        not found or policy.allow_unknown_fields,
        f"{words}; what is known means what it says"
        if found
        else f"the report has nothing that version {report.version} does not define",
        f"{words} (allow_unknown_fields = false)",
        note=bool(found),
    )


def _bits(what: str, value: int) -> list[str]:
    bits = [str(bit) for bit in range(value.bit_length()) if value >> bit & 1]
    return [f"{what} bit{'s' if len(bits) > 1 else ''} {', '.join(bits)}"] if bits else []


def _firmware(checks: Checklist, report: AttestationReport, layout: TcbLayout, policy: Policy) -> None:
    """Does it run what it reports, and is that committed? What is not committed can be rolled back.

    Hosts load microcode while they run, and commit it much later or never: an older one may come back, with a TCB
    version of its own in the reports then. Which microcode is good enough is for minimum_tcb to say.
    """
    running = TcbVersion(report.current_tcb, layout)
    current, committed, reported = (
        _all_parts(tcb)
        for tcb in (running, TcbVersion(report.committed_tcb, layout), TcbVersion(report.reported_tcb, layout))
    )
    wrong, notes = [], []
    for name, runs in current.items():
        title = name.replace("_", " ")
        if reported[name] > runs:
            wrong.append(f"{title} {reported[name]} is reported, and {runs} runs")
        if committed[name] > runs:
            wrong.append(f"{title} {committed[name]} is committed, and {runs} runs")
        elif committed[name] < runs:
            words = f"{title} {runs} runs, {committed[name]} is committed"
            if name == "microcode":
                notes.append(f"{words}, {reported[name]} is reported (which is what minimum_tcb judges)")
            else:
                (notes if policy.allow_provisional_firmware else wrong).append(f"{words}{_PROVISIONAL}")
    versions = [
        (report.committed_major, report.committed_minor, report.committed_build),
        (report.current_major, report.current_minor, report.current_build),
    ]
    words = f"firmware {_dotted(versions[1])} runs, {_dotted(versions[0])} is committed"
    if versions[0] > versions[1]:
        wrong.append(words)
    elif versions[0] < versions[1]:
        (notes if policy.allow_provisional_firmware else wrong).append(f"{words}{_PROVISIONAL}")
    checks.add(
        "firmware",
        not wrong,
        "; ".join(notes) or f"firmware {_dotted(versions[1])} with the TCB version {running} is committed",
        "; ".join(wrong),
        note=bool(notes),
    )


def _all_parts(tcb: TcbVersion) -> dict[str, int]:
    """With the bytes in which this generation has no part: if another has one, it can be rolled back like any other."""
    return {**tcb.parts, **tcb.reserved}


def _dotted(version: tuple[int, int, int]) -> str:
    return f"{version[0]}.{version[1]} build {version[2]}"
