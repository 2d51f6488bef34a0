# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest messages to the secure processor: reports, derived keys, and what carriers can and cannot do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from tests.snp.chip import chip
from tests.snp.guest_requests import POLICY, Guest, request
from veil.formats.attestation_report import AttestationReport, SigningKey
from veil.formats.errors import FormatError
from veil.formats.guest_message import (
    MessageType,
    open_message,
    parse_report_response,
    seal_message,
)
from veil.snp import MODEL_TCB, Machine, SnpError
from veil.snp.guest_requests import FirmwareStatus
from veil.snp.secure_processor import PageType

DEBUG = 1 << 19


def launched(*, policy: int = POLICY, report_version: int = 3, content: bytes = b"image") -> Machine:
    machine = Machine(2 << 20, endorsement=chip, report_version=report_version)
    processor = machine.secure_processor
    processor.launch_start(policy)
    machine.host_view().rmpupdate(0, assigned=True)
    processor.launch_update(0, content.ljust(4096, b"\0"), PageType.NORMAL)
    processor.launch_finish(host_data=bytes(range(32)))
    return machine


@pytest.fixture
def machine() -> Iterator[Machine]:
    with launched() as made:
        yield made


@pytest.mark.parametrize("version", [2, 3, 5])
def test_report(version: int) -> None:
    with launched(report_version=version) as machine:
        data = bytes(range(64))
        status, raw = Guest(machine.secure_processor, 3).report(data)
        assert status == 0
        report = AttestationReport.parse(raw)
        key = chip().vcek.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(encode_dss_signature(*report.signature_rs), report.signed_bytes, ec.ECDSA(hashes.SHA384()))
        assert report.version == version
        assert report.report_data == data
        assert (report.vmpl, report.policy) == (3, POLICY)
        assert report.measurement == machine.secure_processor.measurement
        assert report.host_data == bytes(range(32))
        assert report.chip_id == chip().chip_id
        assert report.current_tcb == report.reported_tcb == report.launch_tcb == MODEL_TCB.value
        assert report.signing_key == SigningKey.VCEK
        assert report.report_id_ma == b"\xff" * 32
        assert (report.cpuid_family > 0) == (version >= 3)


def test_unknown_report_version() -> None:
    with pytest.raises(SnpError, match="versions 2, 3 and 5"):
        Machine(2 << 20, report_version=4)


def test_a_level_speaks_for_itself_and_less_privileged_ones(machine: Machine) -> None:
    for vmpck in range(4):
        guest = Guest(machine.secure_processor, vmpck)
        for vmpl in range(5):
            status, raw = guest.report(vmpl=vmpl)
            allowed = vmpck <= vmpl <= 3
            assert status == (0 if allowed else FirmwareStatus.INVALID_PARAM)
            assert bool(raw) == allowed
            if allowed:
                assert AttestationReport.parse(raw).vmpl == vmpl


def test_reports_of_two_guests_and_of_one(machine: Machine) -> None:
    guest = Guest(machine.secure_processor)
    one, two = (AttestationReport.parse(guest.report()[1]).report_id for _ in range(2))
    with launched() as other:
        assert one == two != AttestationReport.parse(Guest(other.secure_processor).report()[1]).report_id


def test_requests_that_make_no_sense(machine: Machine) -> None:
    guest = Guest(machine.secure_processor)
    assert guest.report(key_select=2)[0] == FirmwareStatus.INVALID_KEY
    assert guest.report(key_select=3)[0] == FirmwareStatus.INVALID_PARAM
    assert parse_report_response(guest.ask(MessageType.REPORT_REQ, b"short"))[0] == FirmwareStatus.INVALID_LEN


def test_derived_keys(machine: Machine) -> None:
    guest = Guest(machine.secure_processor, 1)
    status, key = guest.derived_key()
    assert status == 0
    assert guest.derived_key() == guest.derived_key(length=32) == (0, key)
    everything = guest.derived_key(guest_field_select=0x3F)
    assert everything[0] == 0
    assert len({key, everything[1], guest.derived_key(guest_field_select=8)[1], guest.derived_key(vmpl=2)[1]}) == 4
    with launched() as same, launched(content=b"other") as other:
        alike, different = Guest(same.secure_processor, 1), Guest(other.secure_processor, 1)
        assert alike.derived_key(guest_field_select=8) == guest.derived_key(guest_field_select=8)
        assert different.derived_key(guest_field_select=8) != guest.derived_key(guest_field_select=8)
        assert different.derived_key() == (0, key)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"vmpl": 0}, FirmwareStatus.INVALID_PARAM),
        ({"vmpl": 4}, FirmwareStatus.INVALID_PARAM),
        ({"root_key_select": 1}, FirmwareStatus.INVALID_KEY),
        ({"root_key_select": 2}, FirmwareStatus.INVALID_PARAM),
        ({"reserved_04": 1}, FirmwareStatus.INVALID_PARAM),
        ({"guest_field_select": 0x80}, FirmwareStatus.INVALID_PARAM),
        ({"guest_svn": 1}, FirmwareStatus.INVALID_PARAM),
        ({"tcb_version": MODEL_TCB.value + 1}, FirmwareStatus.INVALID_PARAM),
        ({"length": 31}, FirmwareStatus.INVALID_LEN),
    ],
)
def test_derived_keys_refused(machine: Machine, fields: dict[str, int], status: FirmwareStatus) -> None:
    assert Guest(machine.secure_processor, 1).derived_key(**fields) == (status, bytes(32))


# Who carries messages


def test_replayed_and_reordered_requests(machine: Machine) -> None:
    send = machine.secure_processor.guest_request
    first, second, third = (request(machine, number) for number in (1, 3, 5))
    assert send(second) == (FirmwareStatus.INVALID_PARAM, b"")
    status, answer = send(first)
    assert status == 0
    assert send(first) == (FirmwareStatus.INVALID_PARAM, b"")
    assert send(third) == (FirmwareStatus.INVALID_PARAM, b"")
    status, later = send(second)
    assert status == 0
    # An old answer in place of the new one is noticed by its number.
    key = machine.secure_processor.vmpcks[0]
    assert open_message(key, later, sequence_number=4, vmpck=0)
    with pytest.raises(FormatError):
        open_message(key, answer, sequence_number=4, vmpck=0)
    # Levels count for themselves.
    assert send(request(machine, 1, vmpck=2))[0] == 0


def test_changed_requests(machine: Machine) -> None:
    send = machine.secure_processor.guest_request
    page = request(machine, 1)
    for at in (0, 0x34, 0x36, 0x60, 0x60 + 95):
        changed = bytearray(page)
        changed[at] ^= 1
        status, answer = send(bytes(changed))
        assert status in (FirmwareStatus.INVALID_PARAM, FirmwareStatus.BAD_MEASUREMENT)
        assert answer == b""
    # With another level's number on it, it is not authentic: a host cannot make VMPL 3's request one of VMPL 0.
    lifted = bytearray(request(machine, 1, vmpck=3))
    lifted[0x3C] = 0
    assert send(bytes(lifted)) == (FirmwareStatus.BAD_MEASUREMENT, b"")
    assert send(page)[0] == 0


def test_unknown_message_types(machine: Machine) -> None:
    for kind in (MessageType.EXPORT_REQ, MessageType.TSC_INFO_REQ, MessageType.REPORT_RSP):
        page = seal_message(machine.secure_processor.vmpcks[0], 1, 0, kind, bytes(96))
        assert machine.secure_processor.guest_request(page) == (FirmwareStatus.INVALID_PARAM, b"")


@given(st.binary(max_size=300))
def test_any_page(data: bytes) -> None:
    with launched() as machine:
        status, answer = machine.secure_processor.guest_request(data)
    assert status != 0
    assert answer == b""


def test_before_the_launch_is_finished() -> None:
    with Machine(2 << 20, endorsement=chip) as machine:
        machine.secure_processor.launch_start(POLICY)
        assert machine.secure_processor.guest_request(request(machine, 1)) == (FirmwareStatus.INVALID_GUEST_STATE, b"")


# Policy


def test_debugging_needs_the_guests_policy(machine: Machine) -> None:
    with pytest.raises(SnpError, match="POLICY_FAILURE"):
        machine.secure_processor.dbg_decrypt(0)
    assert not machine.host_view().read(0, 16).startswith(b"image")
    with launched(policy=POLICY | DEBUG) as open_book:
        assert open_book.secure_processor.dbg_decrypt(0).startswith(b"image")
        for gpa in (1, 2 << 20, -4096):
            with pytest.raises(SnpError, match="INVALID_ADDRESS"):
                open_book.secure_processor.dbg_decrypt(gpa)
        # Everyone who gets a report sees it.
        report = AttestationReport.parse(Guest(open_book.secure_processor).report()[1])
        assert report.policy & DEBUG


@pytest.mark.parametrize("policy", [0, 1 << 16, POLICY | 1 << 26, POLICY | 1 << 63, POLICY | 1 << 18])
def test_policies_refused(policy: int) -> None:
    with Machine(2 << 20) as machine, pytest.raises(SnpError, match=r"policy|POLICY"):
        machine.secure_processor.launch_start(policy)


def test_snapshot_keeps_the_count(machine: Machine) -> None:
    guest = Guest(machine.secure_processor)
    before = guest.report()[1]
    state = machine.secure_processor.dump()
    with Machine(2 << 20, endorsement=chip) as other:
        other.secure_processor.load(state, new_keys=False)
        assert other.secure_processor.guest_request(request(machine, 1))[0] == FirmwareStatus.INVALID_PARAM
        guest.processor = other.secure_processor
        after = guest.report()[1]
    one, two = AttestationReport.parse(before), AttestationReport.parse(after)
    assert (one.report_id, one.measurement) == (two.report_id, two.measurement)


def test_two_machines_from_one_snapshot_share_no_key_above_the_kernels(machine: Machine) -> None:
    """Else they would seal different messages with the same key and number, and who sees both could forge more."""
    processor = machine.secure_processor
    for vmpck in (0, 3):
        Guest(processor, vmpck).report()
    state = processor.dump()
    with launched() as one, launched() as two:
        for restored in (one, two):
            restored.secure_processor.load(state, new_keys=True)
        first, second = (restored.secure_processor.vmpcks for restored in (one, two))
        for vmpl in range(3):
            assert len({first[vmpl], second[vmpl], processor.vmpcks[vmpl]}) == 3
            assert Guest(one.secure_processor, vmpl).report(vmpl=3)[0] == 0, "counted from the beginning"
        assert first[3] == second[3] == processor.vmpcks[3]
        status, _ = one.secure_processor.guest_request(request(one, 1, vmpck=3))
        assert status == FirmwareStatus.INVALID_PARAM, "level 3 counts on"


def test_new_keys_are_in_the_secrets_page() -> None:
    with Machine(2 << 20, endorsement=chip) as machine:
        processor = machine.secure_processor
        processor.launch_start(POLICY)
        machine.host_view().rmpupdate(0, assigned=True)
        processor.launch_update(0, bytes(4096), PageType.SECRETS)
        processor.launch_finish()
        old = list(processor.vmpcks)
        processor.load(processor.dump(), new_keys=True)
        page = bytes(machine.memory.mapping[:4096])
        assert [page[0x20 + n * 32 : 0x40 + n * 32] for n in range(4)] == processor.vmpcks
        assert old[:3] != processor.vmpcks[:3]
        assert old[3] == processor.vmpcks[3]
