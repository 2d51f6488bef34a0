# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilMon's messages to the secure processor, sealed with VMPCK 0 (56860, "Guest Messages")."""

from __future__ import annotations

import hmac
from collections.abc import Generator
from typing import TYPE_CHECKING, NamedTuple

from veil.formats.attestation_report import REPORT_BYTES
from veil.formats.domains import MONITOR_VMPL
from veil.formats.errors import FormatError
from veil.formats.ghcb import VmmError
from veil.formats.guest_message import (
    KEY_BYTES,
    MESSAGE_BYTES,
    KeyField,
    KeyRequest,
    MessageType,
    ReportRequest,
    open_message,
    parse_key_response,
    parse_report_response,
    seal_message,
)
from veil.formats.page_sizes import PAGE_SIZE
from veil.monitor.parameters import CERTIFICATE_PAGES, MonitorParameters
from veil.snp.layouts import SecretsPage

if TYPE_CHECKING:
    from veil.monitor.ghcb import Ghcb
    from veil.snp.view import View

__all__ = ["AnswerUnavailable", "Evidence", "GuestMessages"]

_VMPCK = 0
_BUSY_TRIES = 16
_KEY_FIELDS = KeyField.GUEST_POLICY | KeyField.IMAGE_ID | KeyField.FAMILY_ID | KeyField.MEASUREMENT
#: as firmware takes it that knows nothing of mitigation vectors
_KEY_REQUEST_BYTES = 32
_KEY_LABEL = b"VeilMon: the key of the protected services"


class AnswerUnavailable(Exception):
    """There is no report, or no key, to be had; one line why."""


class Evidence(NamedTuple):
    """A report and what the host gave with it."""

    report: bytes
    certificates: bytes


class GuestMessages:
    """One message at a time: `busy` while a VCPU waits for the host to carry one."""

    def __init__(self, view: View, parameters: MonitorParameters) -> None:
        self.count = 0
        """Messages so far, as the secure processor counts them: two for each request."""
        self.busy = False
        self._view = view
        self._key_gpa = parameters.secrets_gpa + SecretsPage.vmpck_offset(_VMPCK)
        self._request = parameters.shared.gpa
        self._response = self._request + PAGE_SIZE
        self._certificates = self._request + 2 * PAGE_SIZE
        # What another life of this machine sent, if it was restored from a snapshot, is nobody's business here.
        for page in (self._request, self._response):
            view.zero(page, PAGE_SIZE, private=False)

    def report(self, host: Ghcb, report_data: bytes) -> Generator[None, None, Evidence]:
        """A report for VMPL 0 with these 64 bytes; raises AnswerUnavailable."""
        request = ReportRequest(vmpl=MONITOR_VMPL)
        request.report_data[:] = list(report_data)
        payload, certificates = yield from self._exchange(host, MessageType.REPORT_REQ, bytes(request))
        try:
            status, report = parse_report_response(payload)
        except FormatError as error:
            raise AnswerUnavailable(str(error)) from error
        if status or len(report) != REPORT_BYTES:
            raise AnswerUnavailable(f"the secure processor refused the report: status {status:#x}")
        return Evidence(report, certificates)

    def lasting_key(self, host: Ghcb) -> Generator[None, None, bytes]:
        """32 bytes: the same in each launch of this image, with this policy, on this processor. Raises
        AnswerUnavailable.

        The secure processor derives it for VMPL 0 from the processor's own key, the launch digest, the policy and the
        IDs of the launch's ID block (MSG_KEY_REQ). Not mixed in is the firmware's version: what is sealed can be read
        after an update.
        """
        request = KeyRequest(guest_field_select=_KEY_FIELDS, vmpl=MONITOR_VMPL)
        payload, _ = yield from self._exchange(host, MessageType.KEY_REQ, bytes(request)[:_KEY_REQUEST_BYTES])
        try:
            status, key = parse_key_response(payload)
        except FormatError as error:
            raise AnswerUnavailable(str(error)) from error
        if status:
            raise AnswerUnavailable(f"the secure processor refused a key: status {status:#x}")
        # The processor's answer itself stays here.
        return hmac.digest(key, _KEY_LABEL, "sha256")

    def _exchange(self, host: Ghcb, kind: MessageType, payload: bytes) -> Generator[None, None, tuple[bytes, bytes]]:
        if self.busy:
            raise AnswerUnavailable("another message is on its way")
        self.busy = True
        try:
            return (yield from self._send(host, kind, payload))
        finally:
            self.busy = False

    def _send(self, host: Ghcb, kind: MessageType, payload: bytes) -> Generator[None, None, tuple[bytes, bytes]]:
        key = self._view.read(self._key_gpa, KEY_BYTES)
        if not any(key):
            raise AnswerUnavailable("the key for messages to the secure processor was given up after a failure")
        number = self.count + 1
        sealed = seal_message(key, number, _VMPCK, kind, payload)
        # From here on the number is used: the host has a message with it. Nothing else may ever be sealed under it
        # (AES-GCM gives everything away when an IV repeats), so the same message goes out again, or the key goes.
        try:
            pages = CERTIFICATE_PAGES if kind == MessageType.REPORT_REQ else 0
            certificates = yield from self._carry(host, sealed, pages)
            found, answer = open_message(
                key, self._view.read(self._response, MESSAGE_BYTES, private=False), sequence_number=number + 1,
                vmpck=_VMPCK,
            )  # fmt: skip
            if found != kind + 1:
                raise FormatError(f"an answer of type {found} to a request of type {kind}")
        except (FormatError, AnswerUnavailable) as error:
            self._view.zero(self._key_gpa, KEY_BYTES)
            raise AnswerUnavailable(f"no more reports: {error}") from error
        self.count = number + 1
        return answer, certificates

    def _carry(self, host: Ghcb, sealed: bytes, pages: int) -> Generator[None, None, bytes]:
        """The certificates that came along, if the host was given pages for them."""
        view = self._view
        for _ in range(_BUSY_TRIES):
            view.write(self._request, sealed, private=False)
            view.zero(self._response, PAGE_SIZE, private=False)
            view.zero(self._certificates, CERTIFICATE_PAGES * PAGE_SIZE, private=False)
            if pages:
                errors, _needed = yield from host.extended_guest_request(
                    self._request, self._response, self._certificates, pages
                )
            else:
                errors = yield from host.guest_request(self._request, self._response)
            if not errors:
                return view.read(self._certificates, pages * PAGE_SIZE, private=False) if pages else b""
            if errors >> 32 == VmmError.INVALID_LENGTH and pages:
                pages = 0  # more certificates than Linux would take: the user has them from elsewhere
            elif errors >> 32 != VmmError.BUSY:
                raise AnswerUnavailable(f"the host or the secure processor answered {errors:#x}")
        raise AnswerUnavailable(f"the host still reports busy after {_BUSY_TRIES} tries")
