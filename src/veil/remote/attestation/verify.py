# SPDX-License-Identifier: GPL-2.0-or-later
"""Is an attestation report genuine, and does it say what its user demands?

Everything here is the attacker's until it is verified. All checks are made and listed, so that one sees all that is
wrong at once; only a signature by a trusted root's chain makes the rest worth reading.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from veil.formats.attestation_report import AttestationReport
from veil.remote.attestation.certificates import CertificateChain
from veil.remote.attestation.chain_checks import check_chain
from veil.remote.attestation.checks import Checklist, Outcome
from veil.remote.attestation.policy import Policy
from veil.remote.attestation.policy_checks import check_policy
from veil.remote.attestation.report_checks import check_report
from veil.remote.attestation.report_encodings import ReportFile
from veil.remote.attestation.roots import TrustedRoots
from veil.remote.errors import RemoteError

__all__ = ["Verification", "verify_report"]

_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Verification(Outcome):
    """The outcome of `verify_report`."""

    report: AttestationReport
    chain: CertificateChain
    machine: str
    """What the root vouches for if chain and report are signed as they should be: "AMD Milan", "AMD Genoa",
    "AMD Turin" or "software"; otherwise "unknown"."""


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
    `at`: when the certificates must be valid, by default now; without a zone it is UTC. Raises FormatError if
    `report` is not an attestation report.
    """
    file = report if isinstance(report, ReportFile) else ReportFile(report)
    parsed = AttestationReport.parse(file.report)
    policy = policy or Policy()
    when = datetime.datetime.now(datetime.UTC) if at is None else _utc(at)
    checks = Checklist()
    machine = check_chain(checks, chain, roots or TrustedRoots.amd(), when, crls)
    reported = check_report(checks, file, parsed, chain, machine, policy)
    check_policy(checks, parsed, policy, reported.reported_tcb, reported.product)
    # AMD's chains are public. Without a signature of the report they say nothing of the machine that it is from.
    return Verification(checks.done(), parsed, chain, machine if machine and reported.signed else _UNKNOWN)


def _utc(at: datetime.datetime) -> datetime.datetime:
    if at.tzinfo is None:
        return at.replace(tzinfo=datetime.UTC)
    try:
        return at.astimezone(datetime.UTC)
    except OverflowError as error:
        raise RemoteError(f"the time {at} has no name in UTC") from error
