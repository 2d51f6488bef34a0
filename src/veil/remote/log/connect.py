# SPDX-License-Identifier: GPL-2.0-or-later
"""From a channel to the log of a CVM that was attested first."""

from __future__ import annotations

from collections.abc import Callable

from veil.formats.log import LOG_GUID
from veil.remote.attestation.evidence import Attested, attest
from veil.remote.attestation.trust import Trust
from veil.remote.channel.client import ChannelClient
from veil.remote.log.reader import LogReader, LogState

__all__ = ["open_log"]


def open_log(
    client: ChannelClient,
    trust: Trust,
    *,
    known: LogState | None = None,
    on_attested: Callable[[Attested], None] = lambda _: None,
) -> LogReader:
    """Attest the other end, and read its log under the key that the report binds. `known`: what was verified before.

    `on_attested` hears of an attestation in which everything holds. Raises VerificationFailed if something does not,
    RemoteError if there is nothing to check or the CVM has no VeilS-LOG, FormatError for a manifest that is not one.
    """
    attested = attest(client, trust)
    attested.raise_for_failure()
    on_attested(attested)
    return LogReader(client, attested.service(LOG_GUID, "VeilS-LOG"), known=known)
