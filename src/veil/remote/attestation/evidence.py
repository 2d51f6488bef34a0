# SPDX-License-Identifier: GPL-2.0-or-later
"""From a channel to somebody unknown to a channel that ends in a CVM whose every byte is known.

The other end proves in the TLS handshake that it has a key. A report, made by the chip for VMPL 0, binds our nonce and
VeilMon's services manifest, in which that key stands; so the key is VeilMon's own and made in this boot, the report is
none of yesterday, and nobody sits in between.
"""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from veil.formats.attestation_report import AttestationReport
from veil.formats.domains import MONITOR_VMPL
from veil.formats.errors import FormatError
from veil.formats.launch_digest import LaunchLog
from veil.formats.monitor_calls import AttestedAnswer, MonitorCall
from veil.formats.services_manifest import CHANNEL_SERVICE, NONCE_BYTES, attested_report_data, parse_manifest
from veil.formats.status import Status
from veil.remote.attestation.certificates import CertificateChain
from veil.remote.attestation.checks import Checklist, Outcome
from veil.remote.attestation.trust import Trust
from veil.remote.attestation.verify import Verification, verify_report
from veil.remote.channel.client import ChannelClient, RequestFailed
from veil.remote.errors import RemoteError

__all__ = ["Attested", "ask_for_evidence", "attest", "check_evidence"]


@dataclass(frozen=True)
class Attested(Outcome):
    """The outcome: the checks that tie the report to this channel, then the report's own."""

    verification: Verification
    services: Mapping[uuid.UUID, bytes]
    """Each protected service's claims, by GUID; empty unless every check succeeded: a report that nobody signed binds
    anything."""
    server_key: bytes

    @property
    def machine(self) -> str:
        """As `Verification.machine`."""
        return self.verification.machine

    def service(self, guid: uuid.UUID, name: str) -> bytes:
        """A protected service's claims; raises RemoteError, which names it, if the CVM has none of this GUID."""
        try:
            return self.services[guid]
        except KeyError:
            raise RemoteError(f"this CVM has no {name}") from None


def attest(client: ChannelClient, trust: Trust) -> Attested:
    """Ask for evidence with a fresh nonce, and check all of it. Raises RemoteError if there is nothing to check."""
    nonce = os.urandom(NONCE_BYTES)
    return check_evidence(ask_for_evidence(client, nonce), nonce, client.server_key, trust)


def ask_for_evidence(client: ChannelClient, nonce: bytes) -> AttestedAnswer:
    """Report, manifest and certificates for a nonce of 64 bytes."""
    try:
        body = client.request(CHANNEL_SERVICE, MonitorCall.ATTEST, nonce)
    except RequestFailed as error:
        if error.status == Status.UNAVAILABLE:
            raise RemoteError(f"the CVM has no report: {error}") from error
        raise
    return AttestedAnswer.parse(body)


def check_evidence(evidence: AttestedAnswer, nonce: bytes, server_key: bytes, trust: Trust) -> Attested:
    """Check evidence that somebody brought for a nonce of ours and the key `server_key` (DER SubjectPublicKeyInfo)."""
    kind = AttestationReport.parse(evidence.report).signing_key
    if trust.certificates:
        chain = CertificateChain.parse(*trust.certificates, kind=kind)
    else:
        chain = CertificateChain.from_certificate_table(evidence.certificates, kind=kind)
    policy = trust.policy.replace(vmpl=MONITOR_VMPL)
    if trust.expected is not None:
        policy = policy.replace(measurement=(*policy.measurement, trust.expected.digest()))
    verification = verify_report(evidence.report, chain, policy=policy, roots=trust.roots, at=trust.at, crls=trust.crls)
    checks = Checklist()
    bound = verification.report.report_data == attested_report_data(nonce, evidence.manifest)
    checks.add(
        "freshness",
        bound,
        "the report binds our nonce and the services manifest",
        "the report does not bind our nonce: it is an old one, or was made for somebody else",
    )
    services: Mapping[uuid.UUID, bytes] = {}
    if bound:
        services = _channel_key(checks, evidence, server_key)
    else:
        checks.skip("channel key", "the report does not bind this manifest")
    measured = verification.report.measurement
    if trust.expected is not None and measured not in policy.measurement:
        _explain(checks, measured, trust.expected, trust.host_log)
    attested = Attested((*checks.done(), *verification.checks), verification, services, server_key)
    return attested if attested.ok else dataclasses.replace(attested, services={})


def _channel_key(checks: Checklist, evidence: AttestedAnswer, server_key: bytes) -> Mapping[uuid.UUID, bytes]:
    try:
        services = parse_manifest(evidence.manifest)
    except FormatError as error:
        checks.add("channel key", False, "", str(error))
        return {}
    key = services.pop(CHANNEL_SERVICE, None)
    checks.add(
        "channel key",
        key == server_key,
        "the channel ends in VeilMon: its key is the one that the report binds",
        "the channel ends elsewhere than in the CVM that was attested: somebody sits in between, with another key",
    )
    return services


def _explain(checks: Checklist, measured: bytes, expected: LaunchLog, host_log: LaunchLog | None) -> None:
    if host_log is None:
        checks.add("what was launched", False, "", "the host gave no launch log, so what differs is not known")
    elif host_log.digest() != measured:
        checks.add("what was launched", False, "", "the host's launch log is not that of the launch in the report")
    else:
        differs = ", ".join(expected.differences(host_log))
        checks.add("what was launched", False, "", f"other than expected: {differs}")
