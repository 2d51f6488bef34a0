# SPDX-License-Identifier: GPL-2.0-or-later
"""The remote user: verifies attestation, talks to VeilMon through the secure channel. Knows wire formats only.

chain = CertificateChain.parse(vcek, ask_and_ark)
verify_report(report, chain, policy=Policy(measurement=(digest,))).raise_for_failure()

with ChannelClient.connect(host, port) as client:
    attest(client, Trust(Policy(measurement=(digest,)))).raise_for_failure()
"""

from veil.remote.attestation.certificates import CertificateChain
from veil.remote.attestation.checks import Check
from veil.remote.attestation.evidence import Attested, attest
from veil.remote.attestation.policy import Demand, Policy
from veil.remote.attestation.report_encodings import ReportFile, read_report
from veil.remote.attestation.roots import TrustedRoots
from veil.remote.attestation.trust import Trust
from veil.remote.attestation.verify import Verification, verify_report
from veil.remote.channel.client import ChannelClient, ChannelClosed, RequestFailed, SocketTransport, Transport
from veil.remote.channel.identity import UserKey
from veil.remote.errors import RemoteError, VerificationFailed

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
    "Trust",
    "TrustedRoots",
    "UserKey",
    "Verification",
    "VerificationFailed",
    "attest",
    "read_report",
    "verify_report",
]
