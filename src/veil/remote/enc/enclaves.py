# SPDX-License-Identifier: GPL-2.0-or-later
"""Enclaves of a CVM that is attested first: which run, that they do, and secrets for them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from veil.formats.enclave_calls import ENC_GUID
from veil.formats.enclave_reports import (
    ATTEST_CALL,
    STATEMENT_DATA,
    EnclaveManifest,
    EnclaveStatement,
    EnclaveStatus,
    EnclaveUserCall,
    Provision,
    Speaker,
    parse_enclaves,
)
from veil.formats.status import Status
from veil.remote.attestation.evidence import attest
from veil.remote.attestation.trust import Trust
from veil.remote.channel.client import ChannelClient, RequestFailed
from veil.remote.errors import RemoteError

__all__ = ["Enclaves", "open_enclaves"]


class Enclaves:
    """The enclaves of one CVM, over a channel whose other end was attested."""

    def __init__(self, client: ChannelClient, manifest: EnclaveManifest) -> None:
        self._client = client
        self._manifest = manifest

    def all(self) -> Sequence[EnclaveStatus]:
        """Every one that there is now. Raises RequestFailed, FormatError."""
        return parse_enclaves(self._client.request(ENC_GUID, EnclaveUserCall.LIST))

    def attest(self, number: int, nonce: bytes | None = None) -> EnclaveStatement:
        """That an enclave of this number runs, and its measurement: signed by the key that the report binds.

        `nonce`: 64 bytes, by default of our own. Raises RemoteError if the statement is about something else.
        """
        nonce = os.urandom(STATEMENT_DATA) if nonce is None else nonce
        body = ATTEST_CALL.pack(number, nonce)
        found = EnclaveStatement.parse(self._client.request(ENC_GUID, EnclaveUserCall.ATTEST, body))
        if (found.speaker, found.enclave, found.data) != (Speaker.USER, number, nonce):
            raise RemoteError("the statement is about another enclave, or an old one")
        if not found.verify(self._manifest.public_key):
            raise RemoteError("the statement is not signed by the key that the report binds")
        return found

    def running(self, measurement: bytes | None = None) -> Mapping[int, tuple[EnclaveStatus, EnclaveStatement]]:
        """Those that run (of this measurement), by number, each attested with a nonce of its own.

        One that ends meanwhile is left out: anybody in the guest makes enclaves and ends them. Raises as `attest`.
        """
        found = {}
        for item in self.all():
            if item.state != "ready" or (measurement is not None and item.measurement != measurement.hex()):
                continue
            try:
                said = self.attest(item.number)
            except RequestFailed as error:
                if error.status != Status.UNAVAILABLE:
                    raise
                continue
            if said.measurement.hex() != item.measurement:
                raise RemoteError("the statement is about another enclave than the list")
            found[item.number] = item, said
        return found

    def provision(self, measurement: bytes, name: bytes, secret: bytes) -> None:
        """Keep a secret for enclaves of this measurement, for as long as the CVM runs; an empty one removes it.

        It goes through the attested channel to VeilS-ENC, which gives it to no other enclave. Raises RequestFailed.
        """
        self._client.request(ENC_GUID, EnclaveUserCall.PROVISION, Provision(measurement, name, secret).pack())


def open_enclaves(client: ChannelClient, trust: Trust) -> Enclaves:
    """Attest the other end, and speak to its VeilS-ENC.

    Raises VerificationFailed if something does not hold, RemoteError if there is nothing to check or the CVM has no
    VeilS-ENC, FormatError for a manifest that is not one.
    """
    attested = attest(client, trust)
    attested.raise_for_failure()
    return Enclaves(client, EnclaveManifest.parse(attested.service(ENC_GUID, "VeilS-ENC")))
