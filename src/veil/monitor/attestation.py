# SPDX-License-Identifier: GPL-2.0-or-later
"""What VeilMon has attested: its services' manifests and the key in which its channel ends."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING

from veil.formats.services_manifest import (
    CHANNEL_SERVICE,
    SERVICES_MANIFEST,
    attested_report_data,
    pack_manifest,
)
from veil.monitor.secure_processor import Evidence, GuestMessages

if TYPE_CHECKING:
    from veil.formats.service_domain import ServiceInfo
    from veil.monitor.ghcb import Ghcb

__all__ = ["Attestation"]


class Attestation:
    """Manifests, and reports that bind them to an asker's nonce."""

    def __init__(
        self, messages: GuestMessages, channel_key: Callable[[], bytes], services: Iterable[ServiceInfo]
    ) -> None:
        """`channel_key` gives the channel's public key, DER SubjectPublicKeyInfo."""
        self._messages = messages
        self._channel_key = channel_key
        self._services = list(services)

    @property
    def busy(self) -> bool:
        """A report is being made: ask again later."""
        return self._messages.busy

    def services_manifest(self) -> bytes:
        """Of VeilMon and all services."""
        entries = {CHANNEL_SERVICE: self._channel_key()}
        entries |= {service.guid: service.manifest for service in self._services}
        return pack_manifest(entries)

    def service_manifest(self, guid: uuid.UUID) -> bytes | None:
        """Of one service; None if there is none of this name.

        A report for one service and one for all look alike: both bind a nonce and bytes. A service whose manifest is
        made of what a kernel says must not be able to have a services manifest of the kernel's choice attested.
        """
        if guid == CHANNEL_SERVICE:
            return self._channel_key()
        for service in self._services:
            if service.guid == guid:
                if service.manifest.startswith(SERVICES_MANIFEST.bytes_le):
                    return None
                return service.manifest
        return None

    def attest(self, host: Ghcb, nonce: bytes, manifest: bytes) -> Generator[None, None, Evidence]:
        """A report of VMPL 0 whose REPORT_DATA is SHA-512(nonce, manifest); raises AnswerUnavailable."""
        return (yield from self._messages.report(host, attested_report_data(nonce, manifest)))
