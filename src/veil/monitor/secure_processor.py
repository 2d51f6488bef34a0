# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilMon's messages to the secure processor, sealed with VMPCK 0 (56860, "Guest Messages")."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, NamedTuple

from veil.formats.attestation_report import REPORT_BYTES
from veil.formats.errors import FormatError
from veil.formats.ghcb import VmmError
from veil.formats.guest_message import (
    KEY_BYTES,
    MESSAGE_BYTES,
    MessageType,
    ReportRequest,
    open_message,
    parse_report_response,
    seal_message,
)
from veil.formats.page_sizes import PAGE_SIZE
from veil.monitor.parameters import CERTIFICATE_PAGES, MonitorParameters
from veil.snp.layouts import SecretsPage

if TYPE_CHECKING:
    from veil.monitor.ghcb import Ghcb
    from veil.snp.view import View

__all__ = ["Evidence", "GuestMessages", "ReportUnavailable"]

_VMPCK = 0
_BUSY_TRIES = 16


class ReportUnavailable(Exception):
    """There is no report to be had; one line why."""


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
        """A report for VMPL 0 with these 64 bytes; raises ReportUnavailable."""
        if self.busy:
            raise ReportUnavailable("another report is being made")
        request = ReportRequest(vmpl=0)
        request.report_data[:] = list(report_data)
        self.busy = True
        try:
            payload, certificates = yield from self._exchange(host, bytes(request))
        finally:
            self.busy = False
        try:
            status, report = parse_report_response(payload)
        except FormatError as error:
            raise ReportUnavailable(str(error)) from error
        if status or len(report) != REPORT_BYTES:
            raise ReportUnavailable(f"the secure processor refused the report: status {status:#x}")
        return Evidence(report, certificates)

    def _exchange(self, host: Ghcb, payload: bytes) -> Generator[None, None, tuple[bytes, bytes]]:
        key = self._view.read(self._key_gpa, KEY_BYTES)
        if not any(key):
            raise ReportUnavailable("the key for messages to the secure processor was given up after a failure")
        number = self.count + 1
        sealed = seal_message(key, number, _VMPCK, MessageType.REPORT_REQ, payload)
        # From here on the number is used: the host has a message with it. Nothing else may ever be sealed under it
        # (AES-GCM gives everything away when an IV repeats), so the same message goes out again, or the key goes.
        try:
            certificates = yield from self._carry(host, sealed)
            kind, answer = open_message(
                key, self._view.read(self._response, MESSAGE_BYTES, private=False), sequence_number=number + 1,
                vmpck=_VMPCK,
            )  # fmt: skip
            if kind != MessageType.REPORT_RSP:
                raise FormatError(f"an answer of type {kind} to a report request")
        except (FormatError, ReportUnavailable) as error:
            self._view.zero(self._key_gpa, KEY_BYTES)
            raise ReportUnavailable(f"no more reports: {error}") from error
        self.count = number + 1
        return answer, certificates

    def _carry(self, host: Ghcb, sealed: bytes) -> Generator[None, None, bytes]:
        view = self._view
        pages = CERTIFICATE_PAGES
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
                raise ReportUnavailable(f"the host or the secure processor answered {errors:#x}")
        raise ReportUnavailable(f"the host still reports busy after {_BUSY_TRIES} tries")
