# SPDX-License-Identifier: GPL-2.0-or-later
"""SNP_GUEST_REQUEST: the secure processor's answers to the guest's messages (56860, "Guest Messages").

Each VMPCK has a message count. A request must carry count + 1, its response has the number after it. The carrier can
therefore neither replay nor reorder; it can only withhold.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from veil.formats.attestation_report import AttestationReport, SigningKey, TcbVersion
from veil.formats.domains import VMPLS
from veil.formats.errors import FormatError
from veil.formats.guest_message import (
    KEY_BYTES,
    MESSAGE_BYTES,
    KeyField,
    KeyRequest,
    MessageType,
    ReportRequest,
    open_message,
    read_header,
    seal_message,
)
from veil.snp.id_block_checks import LaunchIdentity

if TYPE_CHECKING:
    from veil.snp.endorsement import Endorsement

__all__ = ["MODEL_TCB", "FirmwareStatus", "GuestRequests", "LaunchedGuest"]

#: The security versions of the model's "firmware". Not beside its certificates: X.509 takes long to import.
MODEL_TCB = TcbVersion.of(boot_loader=1, tee=0, snp=1, microcode=1)
_ABI_MAJOR, _ABI_MINOR, _BUILD = 1, 58, 1

_SIGNATURE_ALGORITHM = 1
_COUNT_END = (1 << 64) - 3
_VMPCKS = 4
_OLD_KEY_REQUEST = 32


class FirmwareStatus(enum.IntEnum):
    """Status codes (56860, table "Status Codes"), those that a guest request can have."""

    SUCCESS = 0
    INVALID_GUEST_STATE = 2
    INVALID_LEN = 4
    BAD_MEASUREMENT = 0x0B
    INVALID_PARAM = 0x16
    AEAD_OFLOW = 0x1D
    INVALID_KEY = 0x27


class _RootKey(enum.IntEnum):
    VCEK = 0
    VMRK = 1


_ALL_FIELDS = int(sum(KeyField))


@dataclass(frozen=True)
class LaunchedGuest:
    """What the guest context holds once the launch is finished."""

    policy: int
    measurement: bytes
    host_data: bytes
    identity: LaunchIdentity


class GuestRequests:
    """Message counts and answers of one guest."""

    def __init__(
        self,
        endorsement: Callable[[], Endorsement],
        *,
        cpuid_signature: int,
        report_version: int,
    ) -> None:
        """`cpuid_signature` is CPUID 1's EAX. `report_version`: 2, 3 or 5."""
        self._endorsement = endorsement
        self._signature = cpuid_signature
        self.report_version = report_version
        self.report_id = os.urandom(32)
        self._counts = [0] * _VMPCKS

    def dump(self) -> dict[str, Any]:
        return {"report_id": self.report_id, "counts": list(self._counts), "report_version": self.report_version}

    def load(self, state: dict[str, Any]) -> None:
        self.report_id, self.report_version = state["report_id"], state["report_version"]
        self._counts = list(state["counts"])

    def restart(self, vmpck: int) -> None:
        """Count from the beginning, with a new key."""
        self._counts[vmpck] = 0

    def handle(self, page: bytes, vmpcks: list[bytes], guest: LaunchedGuest) -> tuple[int, bytes]:
        """(status of the command, response page): empty if there is none."""
        try:
            header = read_header(page.ljust(MESSAGE_BYTES, b"\0")[:MESSAGE_BYTES])
        except FormatError:
            return FirmwareStatus.INVALID_PARAM, b""
        vmpck = header.vmpck
        count = self._counts[vmpck]
        if count >= _COUNT_END:
            return FirmwareStatus.AEAD_OFLOW, b""
        if header.sequence_number != count + 1:
            return FirmwareStatus.INVALID_PARAM, b""
        try:
            kind, payload = open_message(vmpcks[vmpck], page, sequence_number=count + 1, vmpck=vmpck)
        except FormatError:
            return FirmwareStatus.BAD_MEASUREMENT, b""
        if kind == MessageType.REPORT_REQ:
            answer = self._report(payload, vmpck, guest)
        elif kind == MessageType.KEY_REQ:
            answer = self._key(payload, vmpck, guest)
        else:
            return FirmwareStatus.INVALID_PARAM, b""
        self._counts[vmpck] = count + 2
        return FirmwareStatus.SUCCESS, seal_message(vmpcks[vmpck], count + 2, vmpck, MessageType(kind + 1), answer)

    def _report(self, payload: bytes, vmpck: int, guest: LaunchedGuest) -> bytes:
        """MSG_REPORT_RSP."""
        try:
            request = ReportRequest.from_buffer_copy(payload)
        except ValueError:
            return _report_response(FirmwareStatus.INVALID_LEN)
        # A level may speak for itself and for less privileged ones only: the key says who asks.
        if not vmpck <= request.vmpl < VMPLS or request.key_select > 2 or any(request.reserved_48):
            return _report_response(FirmwareStatus.INVALID_PARAM)
        if request.key_select == 2:
            return _report_response(FirmwareStatus.INVALID_KEY)  # no VLEK is loaded
        report = self.make_report(guest, bytes(request.report_data), request.vmpl)
        return _report_response(FirmwareStatus.SUCCESS, bytes(report))

    def make_report(self, guest: LaunchedGuest, report_data: bytes, vmpl: int) -> AttestationReport:
        """A signed report."""
        endorsement = self._endorsement()
        identity = guest.identity
        tcb = MODEL_TCB.value
        report = AttestationReport(
            version=self.report_version, guest_svn=identity.guest_svn, policy=guest.policy, vmpl=vmpl,
            signature_algorithm=_SIGNATURE_ALGORITHM, current_tcb=tcb, reported_tcb=tcb, committed_tcb=tcb,
            launch_tcb=tcb, flags=int(identity.author_key_enabled) | SigningKey.VCEK << 2,
            current_build=_BUILD, current_minor=_ABI_MINOR, current_major=_ABI_MAJOR,
            committed_build=_BUILD, committed_minor=_ABI_MINOR, committed_major=_ABI_MAJOR,
        )  # fmt: skip
        report.set_bytes(
            family_id=identity.family_id, image_id=identity.image_id, report_data=report_data,
            measurement=guest.measurement, host_data=guest.host_data, id_key_digest=identity.id_key_digest,
            author_key_digest=identity.author_key_digest, report_id=self.report_id, report_id_ma=b"\xff" * 32,
            chip_id=endorsement.chip_id,
        )  # fmt: skip
        if report.has_cpuid:
            signature = self._signature
            report.cpuid_family = (signature >> 8 & 0xF) + (signature >> 20 & 0xFF)
            report.cpuid_model = signature >> 4 & 0xF | signature >> 12 & 0xF0
            report.cpuid_stepping = signature & 0xF
        report.sign(*decode_dss_signature(endorsement.vcek_key.sign(report.signed_bytes, ec.ECDSA(hashes.SHA384()))))
        return report

    def _key(self, payload: bytes, vmpck: int, guest: LaunchedGuest) -> bytes:
        """MSG_KEY_RSP: u32 status, 28 reserved bytes, the key."""
        if len(payload) not in (_OLD_KEY_REQUEST, _OLD_KEY_REQUEST + 8):
            return _key_response(FirmwareStatus.INVALID_LEN)
        request = KeyRequest.from_buffer_copy(payload.ljust(_OLD_KEY_REQUEST + 8, b"\0"))
        asked = TcbVersion(request.tcb_version)
        if (
            not vmpck <= request.vmpl < VMPLS
            or request.root_key_select not in set(_RootKey)
            or request.reserved_04
            or request.guest_field_select & ~_ALL_FIELDS
            # A newer version's key must not be had before the version is there.
            or request.guest_svn > guest.identity.guest_svn
            or not MODEL_TCB.at_least(asked)
        ):
            return _key_response(FirmwareStatus.INVALID_PARAM)
        if request.root_key_select == _RootKey.VMRK:
            return _key_response(FirmwareStatus.INVALID_KEY)  # comes with a migration agent, which there is not
        return _key_response(FirmwareStatus.SUCCESS, _derive(self._endorsement().chip_secret, request, guest))


def _derive(secret: bytes, request: KeyRequest, guest: LaunchedGuest) -> bytes:
    """The specification leaves the function to the firmware; here HMAC-SHA-384 over everything selected."""
    identity = guest.identity
    values = {
        KeyField.GUEST_POLICY: guest.policy.to_bytes(8, "little"),
        KeyField.IMAGE_ID: identity.image_id,
        KeyField.FAMILY_ID: identity.family_id,
        KeyField.MEASUREMENT: guest.measurement,
        KeyField.GUEST_SVN: request.guest_svn.to_bytes(4, "little"),
        KeyField.TCB_VERSION: request.tcb_version.to_bytes(8, "little"),
        KeyField.LAUNCH_MITIGATION_VECTOR: request.launch_mitigation_vector.to_bytes(8, "little"),
    }
    selected = request.guest_field_select
    mixed = [value if selected & field else bytes(len(value)) for field, value in values.items()]
    context = struct.pack("<IQI", request.root_key_select, selected, request.vmpl) + b"".join(mixed)
    return hmac.new(secret, b"veil derived key\0" + context, hashlib.sha384).digest()[:KEY_BYTES]


def _report_response(status: FirmwareStatus, report: bytes = b"") -> bytes:
    return struct.pack("<II24x", status, len(report)) + report


def _key_response(status: FirmwareStatus, key: bytes = bytes(KEY_BYTES)) -> bytes:
    return struct.pack("<I28x", status) + key
