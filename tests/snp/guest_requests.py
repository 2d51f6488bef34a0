# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest with its secrets page, which asks the secure processor."""

from __future__ import annotations

import struct

from veil.formats.guest_message import (
    KeyRequest,
    MessageType,
    ReportRequest,
    open_message,
    parse_report_response,
    seal_message,
)
from veil.snp import Machine
from veil.snp.guest_requests import FirmwareStatus
from veil.snp.secure_processor import SecureProcessor

POLICY = 1 << 17 | 1 << 16


class Guest:
    """One VMPL's end of the conversation."""

    def __init__(self, processor: SecureProcessor, vmpck: int = 0) -> None:
        self.processor, self.vmpck, self.count = processor, vmpck, 0

    def ask(self, kind: MessageType, payload: bytes) -> bytes:
        key = self.processor.vmpcks[self.vmpck]
        status, page = self.processor.guest_request(seal_message(key, self.count + 1, self.vmpck, kind, payload))
        assert status == FirmwareStatus.SUCCESS
        self.count += 2
        answer, payload = open_message(key, page, sequence_number=self.count, vmpck=self.vmpck)
        assert answer == kind + 1
        return payload

    def report(self, data: bytes = bytes(64), vmpl: int | None = None, key_select: int = 0) -> tuple[int, bytes]:
        request = ReportRequest(vmpl=self.vmpck if vmpl is None else vmpl, key_select=key_select)
        request.report_data[:] = list(data)
        return parse_report_response(self.ask(MessageType.REPORT_REQ, bytes(request)))

    def derived_key(self, *, length: int = 40, **fields: int) -> tuple[int, bytes]:
        fields.setdefault("vmpl", self.vmpck)
        payload = self.ask(MessageType.KEY_REQ, bytes(KeyRequest(**fields))[:length])
        assert len(payload) == 64
        return struct.unpack_from("<I", payload)[0], payload[32:]


def request(machine: Machine, number: int, vmpck: int = 0) -> bytes:
    payload = bytes(ReportRequest(vmpl=vmpck))
    return seal_message(machine.secure_processor.vmpcks[vmpck], number, vmpck, MessageType.REPORT_REQ, payload)
