# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that the test locks down, in the driver's place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.locking import ASK, ask
from veil.cvm import ConfidentialVM
from veil.formats.kci import KCI_GUID, KernelCall
from veil.formats.kci_settings import KciSettings
from veil.formats.kci_status import CodeWord, KciStatus, UserCall
from veil.formats.log import LOG_GUID, EntryKind, ServiceWord, parse_entries
from veil.formats.log import UserCall as LogCall
from veil.formats.log_settings import LogSettings
from veil.image.services_image import PROTECTED_SERVICES, ServicesImage
from veil.installation import user_key
from veil.remote import ChannelClient

__all__ = ["LockedGuest", "services"]


def services(mode: str = "on", **settings: Any) -> ServicesImage:
    """VeilS-LOG and a VeilS-KCI that does for users what it does for the kernel."""
    log, kci = LogSettings(), KciSettings(mode=mode, **settings)
    return ServicesImage(
        "tests.locking:Services",
        (*PROTECTED_SERVICES.packages, "tests.locking"),
        {"log": log.measured(), "kci": kci.measured()},
        log.memory_size + kci.memory_size,
        keeps_kernel=kci.keeps_kernel,
    )


class LockedGuest:
    """A guest without the driver, and its VeilS-KCI."""

    def __init__(self, vm: ConfidentialVM) -> None:
        self.vm = vm

    @classmethod
    def restore(cls, path: Path, mode: str = "on") -> LockedGuest:
        """From a snapshot."""
        return cls(ConfidentialVM.restore(path, services=services(mode)))

    def _user(self, service: Any, call: int, body: bytes = b"") -> bytes:
        with ChannelClient(self.vm.user_transport(timeout=60), identity=user_key()) as client:
            return client.request(service, call, body)

    def ask(self, call: KernelCall, body: bytes = b"", pages: tuple[int, ...] = ()) -> bytes:
        """As the driver would. Raises RequestFailed."""
        return self._user(KCI_GUID, ASK, ask(call, body, pages))

    def lock_down(self) -> None:
        """As the measured init would."""
        self.ask(KernelCall.LOCK_DOWN)

    def status(self) -> KciStatus:
        """What VeilS-KCI says."""
        return KciStatus.parse(self._user(KCI_GUID, UserCall.STATUS))

    def words(self) -> list[CodeWord]:
        """What it said in the log."""
        found: list[CodeWord] = []
        sequence = 0
        while True:
            entries = list(
                parse_entries(self._user(LOG_GUID, LogCall.FETCH, sequence.to_bytes(8, "little") + b"\0\0\1\0"))
            )
            if not entries:
                return found
            sequence = entries[-1].sequence + 1
            found += [
                CodeWord.parse(ServiceWord.parse(entry.body).body) for entry in entries if entry.kind == EntryKind.WORD
            ]
