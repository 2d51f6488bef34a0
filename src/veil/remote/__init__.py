# SPDX-License-Identifier: GPL-2.0-or-later
"""The remote user: verifies attestation, talks to VeilMon through the secure channel. Knows wire formats only.

    chain = CertificateChain.parse(vcek, ask_and_ark)
    verify_report(report, chain, policy=Policy(measurement=(digest,))).raise_for_failure()

    with ChannelClient(SocketTransport.connect(host, port)) as client:
        attest(client, policy=Policy(measurement=(digest,))).raise_for_failure()
"""

from veil.remote.attest import Attested, attest
from veil.remote.certificates import CertificateChain
from veil.remote.checks import Check
from veil.remote.client import ChannelClient, ChannelClosed, RequestFailed, SocketTransport, Transport
from veil.remote.errors import RemoteError, VerificationFailed
from veil.remote.identity import UserKey
from veil.remote.policy import Demand, Policy
from veil.remote.report_forms import ReportFile, read_report
from veil.remote.roots import TrustedRoots
from veil.remote.verify import Verification, verify_report

__all__ = [
    "Attested",
    "CertificateChain",
    "ChannelClient",
    "ChannelClosed",
    "Check",
    "Demand",
    "Policy",
    "RemoteError",
    "ReportFile",
    "RequestFailed",
    "SocketTransport",
    "Transport",
    "TrustedRoots",
    "UserKey",
    "Verification",
    "VerificationFailed",
    "attest",
    "read_report",
    "verify_report",
]
