# SPDX-License-Identifier: GPL-2.0-or-later
"""What VeilS-KCI says of a CVM's kernel, which was attested first."""

from __future__ import annotations

from veil.formats.kci import KCI_GUID
from veil.formats.kci_status import KciStatus, UserCall
from veil.remote.attestation.evidence import attest
from veil.remote.attestation.trust import Trust
from veil.remote.channel.client import ChannelClient

__all__ = ["read_status"]


def read_status(client: ChannelClient, trust: Trust) -> KciStatus:
    """Attest the other end, then ask it. Names and words in the answer come from the kernel's modules.

    Raises VerificationFailed if something does not hold, RemoteError if there is nothing to check or the CVM has no
    VeilS-KCI, RequestFailed if this user may not ask, FormatError for an answer that is not one.
    """
    attested = attest(client, trust)
    attested.raise_for_failure()
    attested.service(KCI_GUID, "VeilS-KCI")
    return KciStatus.parse(client.request(KCI_GUID, UserCall.STATUS))
