# SPDX-License-Identifier: GPL-2.0-or-later
"""The remote user: verifies attestation, talks to VeilMon through the secure channel. Knows wire formats only.

    chain = CertificateChain.parse(vcek, ask_and_ark)
    verify_report(report, chain, policy=Policy(measurement=(digest,))).raise_for_failure()
"""

from veil.remote.certificates import CertificateChain
from veil.remote.checks import Check
from veil.remote.errors import RemoteError, VerificationFailed
from veil.remote.policy import Policy
from veil.remote.roots import TrustedRoots
from veil.remote.verify import Verification, verify_report

__all__ = [
    "CertificateChain",
    "Check",
    "Policy",
    "RemoteError",
    "TrustedRoots",
    "Verification",
    "VerificationFailed",
    "verify_report",
]
