# SPDX-License-Identifier: GPL-2.0-or-later
"""Attestation reports, parsed and verified. An input: a byte that chooses the machine, then the report."""

from __future__ import annotations

import base64
import functools
import hashlib
import struct
from collections.abc import Iterable

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from fuzz.target import Target
from fuzz.world import GUEST, Witness, endorsement, genuine_machines, guest_requests, software_machine
from veil.formats.attestation_report import (
    FIRST_UNKNOWN_POLICY_BIT,
    REPORT_BYTES,
    SIGNED_BYTES,
    AttestationReport,
    GuestPolicy,
    PlatformInfo,
)
from veil.remote.attestation.policy import Policy
from veil.remote.attestation.report_encodings import read_report
from veil.remote.attestation.verify import verify_report
from veil.snp import MODEL_TCB

__all__ = ["TARGETS"]

#: The software machine signs whatever follows: what a check says must not hang on the signature's being bad.
_SIGN = 0x80
_DEMANDING = Policy(
    measurement=(bytes(48),), report_data=bytes(64), host_data=bytes(32), family_id=bytes(16), image_id=bytes(16),
    chip_ids=(bytes(64),), id_key_digests=(bytes(48),), author_key_digests=(bytes(48),), max_vmpl=0,
    allow_smt=False, require_single_socket=True, minimum_abi=(1, 55), minimum_guest_svn=1,
    minimum_tcb={"snp": 1, "fmc": 1}, minimum_launch_mitigations=1, require_platform=PlatformInfo.ECC_EN,
    forbid_platform=PlatformInfo.SMT_EN, products=("Genoa",), allow_vlek=False,
)  # fmt: skip


def _machines() -> tuple[Witness, ...]:
    return software_machine(), *genuine_machines()


def _run(data: bytes) -> None:
    choice, raw = data[0] if data else 0, data[1:]
    machines = _machines()
    machine = machines[(choice & ~_SIGN) % len(machines)]
    report = AttestationReport.parse(raw)
    assert bytes(report) == raw
    if choice & _SIGN:
        signature = endorsement().vcek_key.sign(report.signed_bytes, ec.ECDSA(hashes.SHA384()))
        report.sign(*decode_dss_signature(signature))
        machine = software_machine()
    verified = verify_report(bytes(report), machine.chain, roots=machine.roots)
    assert all(check.words for check in verified.checks)
    # Nobody's report is good but one that a machine signed. What ours signs at our wish is good only if it is like one
    # of its own in all that its certificate says, and lets the host not look in.
    if verified.ok and choice & _SIGN:
        assert report.chip_id == endorsement().chip_id
        assert report.reported_tcb == MODEL_TCB.value
        assert not report.policy & GuestPolicy.DEBUG
        # A bit that nobody knows may permit the host anything.
        assert not report.policy >> FIRST_UNKNOWN_POLICY_BIT
    elif verified.ok:
        assert raw[:SIGNED_BYTES] in {known[:SIGNED_BYTES] for known in machine.reports}
    assert not verify_report(bytes(report), machine.chain, roots=machine.roots, policy=_DEMANDING).ok


def _seeds() -> Iterable[bytes]:
    for index, machine in enumerate(_machines()):
        for report in machine.reports:
            yield bytes((index,)) + report
    for report in software_machine().reports:
        yield bytes((_SIGN,)) + report


# A file with a report in it: bare, as text, with certificates, in a vTPM's blob. The report is one of the software
# machine's; what is around it, nobody signed.

_RUNTIME_DATA = b'{"keys":[{"kid":"HCLAkPub"}]}'


def _file(data: bytes) -> None:
    file = read_report(data)
    assert len(file.report) == REPORT_BYTES
    assert file.in_vtpm_blob or file.runtime_data is None
    machine = software_machine()
    verified = verify_report(file, machine.chain, roots=machine.roots)
    if verified.ok and file.runtime_data is not None:
        assert file.runtime_data.data == _RUNTIME_DATA
    if verified.ok:
        known = (*machine.reports, _binding_report())
        assert file.report[:SIGNED_BYTES] in {report[:SIGNED_BYTES] for report in known}


@functools.cache
def _binding_report() -> bytes:
    digest = hashlib.sha256(_RUNTIME_DATA).digest()
    return bytes(guest_requests().make_report(GUEST, digest.ljust(64, b"\0"), 0))


def _blob(report: bytes, data: bytes) -> bytes:
    size = 20 + len(data)
    header = struct.pack("<4s7I", b"HCLA", 2, 32 + REPORT_BYTES + size, 2, 0, 0, 0, 0)
    return header + report + struct.pack("<5I", size, 1, 2, 1, len(data)) + data


def _file_seeds() -> Iterable[bytes]:
    for report in software_machine().reports:
        yield report
        yield b"0x" + report.hex().encode()
        yield base64.encodebytes(report)
    yield software_machine().reports[0] + endorsement().certificate_table
    yield _blob(_binding_report(), _RUNTIME_DATA).ljust(2600, b"\0")
    yield base64.b64encode(_blob(_binding_report(), _RUNTIME_DATA))
    yield _blob(_binding_report(), b"")[:-20] + bytes(20)


TARGETS = (
    Target("report", _run, _seeds, max_bytes=2048),
    Target("report-file", _file, _file_seeds, words=(b"HCLA", b"0x"), max_bytes=8192),
)
