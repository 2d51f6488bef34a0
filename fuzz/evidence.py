# SPDX-License-Identifier: GPL-2.0-or-later
"""What a remote user gets from one who claims to be a CVM's monitor, and from its host: evidence, launch log."""

from __future__ import annotations

import functools
import struct
import uuid
from collections.abc import Iterable
from typing import cast

from fuzz.target import Target
from fuzz.world import GUEST, endorsement, guest_requests, software_machine
from veil.formats.attestation_report import SIGNED_BYTES
from veil.formats.launch_digest import LaunchEntry, LaunchLog, PageType
from veil.formats.monitor_calls import AttestedAnswer
from veil.formats.services_manifest import CHANNEL_SERVICE, NONCE_BYTES, attested_report_data, pack_manifest
from veil.remote.attestation.evidence import ask_for_evidence, check_evidence
from veil.remote.attestation.policy import Policy
from veil.remote.attestation.trust import Trust
from veil.remote.channel.client import ChannelClient

__all__ = ["TARGETS"]

_NONCE = bytes(NONCE_BYTES)
_SERVER_KEY = bytes(range(100))
_LENGTHS = struct.Struct("<III")
_PAGE = 4096


class _Answer:
    """A channel whose other end says this."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def request(self, service: uuid.UUID, call: int, body: bytes = b"") -> bytes:
        return self._body


def _evidence(data: bytes) -> None:
    found = ask_for_evidence(cast(ChannelClient, _Answer(data)), _NONCE)
    policy = Policy(measurement=(GUEST.measurement,))
    result = check_evidence(found, _NONCE, _SERVER_KEY, Trust(policy=policy, roots=software_machine().roots))
    genuine = _genuine()
    if result.ok:
        assert found.report[:SIGNED_BYTES] == genuine.report[:SIGNED_BYTES]
        assert found.manifest == genuine.manifest
    # Claims that no report binds are nobody's.
    assert not result.services or found.manifest == genuine.manifest


@functools.cache
def _genuine() -> AttestedAnswer:
    manifest = pack_manifest({CHANNEL_SERVICE: _SERVER_KEY, uuid.UUID(int=1): b"claims"})
    report = guest_requests().make_report(GUEST, attested_report_data(_NONCE, manifest), 0)
    return AttestedAnswer(bytes(report), manifest, endorsement().certificate_table)


def _evidence_seeds() -> Iterable[bytes]:
    genuine = _genuine()
    parts = genuine.report, genuine.manifest, genuine.certificates
    yield _LENGTHS.pack(*map(len, parts)) + b"".join(parts)


def _expected() -> LaunchLog:
    return LaunchLog(
        (
            LaunchEntry.of("kernel", 0x100000, PageType.NORMAL, bytes(range(256)) * 32),
            LaunchEntry.of("memory", 0x200000, PageType.ZERO, bytes(4 * _PAGE)),
            LaunchEntry.of("vmsa", 0x300000, PageType.VMSA, bytes(_PAGE)),
        )
    )


def _log(data: bytes) -> None:
    log = LaunchLog.parse(data)
    assert LaunchLog.parse(log.pack()) == log
    expected = _expected()
    # A log that leads to the same digest says the same.
    if log.digest() == expected.digest():
        assert not expected.differences(log)
    else:
        assert expected.differences(log)


def _log_seeds() -> Iterable[bytes]:
    yield _expected().pack()
    yield LaunchLog(()).pack()
    yield LaunchLog((LaunchEntry.of("cpuid", 0, PageType.CPUID, bytes(_PAGE)),)).pack()


_LOG_WORDS = (
    b'"format"', b'"entries"', b'"name"', b'"gpa"', b'"type"', b'"pages"', b"veil launch log 1", b"null", b"true",
    b"NaN", b"1e9", b"\\ud800", b"[" * 64, b"9" * 64, *(kind.name.encode() for kind in PageType),
)  # fmt: skip
TARGETS = (
    Target("evidence", _evidence, _evidence_seeds, max_bytes=8192),
    Target("launch-log", _log, _log_seeds, words=_LOG_WORDS, max_bytes=4096),
)
