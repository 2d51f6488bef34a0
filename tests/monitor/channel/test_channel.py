# SPDX-License-Identifier: GPL-2.0-or-later
"""The secure channel's end in VeilMon: users, and a host (or a kernel) that does what it likes with what it carries."""

from __future__ import annotations

import json
import os
import struct
import uuid
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.monitor.channel.harness import OWNER, Diary, Services, user
from tests.monitor.harness import PAGE, SHARED, Bench
from tests.monitor.wire import Wire, ping
from veil.formats.attestation_report import AttestationReport
from veil.formats.channel import (
    AREA_HEADER,
    DOORBELL_DATA,
    DOORBELL_PORT,
    DOORBELL_SPOILT,
    MAX_FRAME_DATA,
    MAX_MESSAGE,
    MAX_STRANGER_MESSAGE,
    WINDOW,
    ChannelArea,
    FrameKind,
    pack_frame,
)
from veil.formats.ghcb import MSR_INFO_MASK, GhcbField, NaeEvent
from veil.formats.monitor_calls import MonitorCall
from veil.formats.services_manifest import CHANNEL_SERVICE, attested_report_data, parse_manifest
from veil.formats.status import Status
from veil.monitor import VeilMon
from veil.monitor.channel.bounds import MAX_STRANGERS
from veil.monitor.parameters import MIN_SHARED
from veil.remote.channel.client import ChannelClient, ChannelClosed, RequestFailed
from veil.remote.channel.identity import UserKey
from veil.snp.errors import RmpViolation

AREA = ChannelArea(SHARED + MIN_SHARED - ChannelArea(0).size)


@pytest.fixture
def bench() -> Bench:
    return Bench(services=Services, owners=[OWNER.fingerprint]).boot()


# Users


def test_requests(bench: Bench) -> None:
    with user(bench, OWNER) as client:
        for size in (0, 1, 1000, MAX_FRAME_DATA, WINDOW + 1, MAX_MESSAGE):
            ping(client, os.urandom(size))
    with user(bench) as client:
        for size in (0, 1, MAX_STRANGER_MESSAGE):
            ping(client, os.urandom(size))
        with pytest.raises(ChannelClosed):
            ping(client, bytes(MAX_STRANGER_MESSAGE + 1))
    with user(bench, OWNER) as client:
        status = json.loads(client.request(CHANNEL_SERVICE, MonitorCall.STATUS))
        assert status["protected"] is True
        assert status["services"] == {"diary": str(Diary.guid)}


def test_attested_key_is_the_key_of_the_connection(bench: Bench) -> None:
    with user(bench) as client:
        nonce = os.urandom(64)
        body = client.request(CHANNEL_SERVICE, MonitorCall.ATTEST, nonce)
        report_size, manifest_size, certificates_size = struct.unpack_from("<III", body)
        report = AttestationReport.parse(body[12 : 12 + report_size])
        manifest = body[12 + report_size : 12 + report_size + manifest_size]
        assert len(body) == 12 + report_size + manifest_size + certificates_size
        assert report.report_data == attested_report_data(nonce, manifest)
        assert report.vmpl == 0
        assert parse_manifest(manifest)[CHANNEL_SERVICE] == client.server_key


def test_each_boot_has_its_own_key() -> None:
    keys = set()
    for _ in range(2):
        with user(Bench().boot()) as client:
            keys.add(client.server_key)
    assert len(keys) == 2


def test_owners_and_others(bench: Bench) -> None:
    with user(bench, OWNER) as owner, user(bench) as stranger, user(bench, UserKey.generate()) as other:
        assert owner.request(Diary.guid, 1, b"today") == b""
        for client in (stranger, other):
            with pytest.raises(RequestFailed, match=r"not allowed.*only an owner") as caught:
                client.request(Diary.guid, 1, b"forged")
            assert caught.value.status == Status.NOT_ALLOWED
            assert client.request(Diary.guid, 0) == b"today"


@pytest.mark.parametrize(
    ("service", "call", "body", "status"),
    [
        (uuid.UUID(int=5), 0, b"", Status.UNKNOWN_SERVICE),
        (CHANNEL_SERVICE, 99, b"", Status.UNKNOWN_CALL),
        (CHANNEL_SERVICE, MonitorCall.ATTEST, b"short nonce", Status.BAD_REQUEST),
    ],
)
def test_refused_requests(bench: Bench, service: uuid.UUID, call: int, body: bytes, status: Status) -> None:
    with user(bench) as client:
        with pytest.raises(RequestFailed) as caught:
            client.request(service, call, body)
        assert caught.value.status == status
        ping(client)


def test_a_mistake_in_a_service_stops_nothing(bench: Bench) -> None:
    with user(bench) as client:
        with pytest.raises(RequestFailed, match=r"diary failed") as caught:
            client.request(Diary.guid, 2)
        assert caught.value.status == Status.UNAVAILABLE
        assert "a mistake" not in str(caught.value)  # a stranger does not learn what went wrong inside
        ping(client)


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_users_with_keys_of_other_kinds(bench: Bench, kind: str) -> None:
    key = ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else rsa.generate_private_key(65537, 2048)
    certificate = OWNER.certificate
    name = certificate.subject
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(certificate.not_valid_before_utc)
    builder = builder.not_valid_after(certificate.not_valid_after_utc)
    made = builder.sign(key, None if kind == "ed25519" else hashes.SHA256())
    with user(bench, UserKey(key, made)) as client:  # type: ignore[arg-type]
        ping(client)
        with pytest.raises(RequestFailed, match="only an owner"):
            client.request(Diary.guid, 1, b"mine")


def test_no_report_to_be_had(bench: Bench) -> None:
    bench.on_message = lambda request, response, data: (0x16, 0)
    with user(bench) as client:
        with pytest.raises(RequestFailed, match="no more reports"):
            client.request(CHANNEL_SERVICE, MonitorCall.ATTEST, bytes(64))
        ping(client)


def test_many_at_once_and_one_that_never_reads(bench: Bench) -> None:
    clients = [user(bench, OWNER) for _ in range(20)]
    lazy = user(bench, OWNER)
    for _ in range(8):
        lazy.send(CHANNEL_SERVICE, MonitorCall.PING, bytes(MAX_MESSAGE // 2))
    bench.channel.run()
    for client in clients:
        ping(client, bytes(3 * WINDOW))
    for _ in range(8):
        assert len(lazy.receive().body) == MAX_MESSAGE // 2


def test_memory_for_one_that_never_reads_is_bounded(bench: Bench) -> None:
    link = bench.monitor._channel
    assert link is not None
    for identity, size, most in ((OWNER, MAX_MESSAGE, 3 * MAX_MESSAGE), (None, MAX_STRANGER_MESSAGE, 64 << 10)):
        lazy = user(bench, identity)
        for _ in range(40):
            lazy.send(CHANNEL_SERVICE, MonitorCall.PING, bytes(size))
        bench.channel.run()
        *_, connection = link._connections.values()
        held = len(connection._input) + len(connection._out) + len(connection._reader._held)
        assert size < held < most
    ping(user(bench))


def test_strangers_do_not_keep_owners_out(bench: Bench) -> None:
    with user(bench, OWNER) as owner:
        strangers = [Wire(bench) for _ in range(500)]
        bench.channel.run()
        ping(owner)
        with user(bench, OWNER) as another:
            ping(another)
        gone = [not wire.connection.is_open for wire in strangers]
        assert gone == sorted(gone, reverse=True), "the oldest go first"
        assert 500 - MAX_STRANGERS <= sum(gone) <= 502 - MAX_STRANGERS


def test_snapshot_ends_connections_and_has_a_new_key(bench: Bench) -> None:
    """Several machines may come from one snapshot: none of them can speak for another."""
    client = user(bench)
    saved, device = bench.monitor.save(), bench.channel.device.dump()
    monitor = VeilMon()
    monitor.restore(saved)
    bench.resume(monitor)
    bench.channel.device.load(device)
    with user(bench) as again:
        assert again.server_key != client.server_key
        ping(again)
    with pytest.raises(ChannelClosed):
        ping(client)


# A hostile carrier on the way: the host, a network, a kernel that writes the shared pages


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize(
    "tamper",
    [
        lambda old, data: data[:-1] + bytes((data[-1] ^ 1,)),
        lambda old, data: data[: len(data) // 2],
        lambda old, data: data + data,
        lambda old, data: old[-1],
        lambda old, data: b"\x17\x03\x03\0\x20" + bytes(32) + data,
        lambda old, data: os.urandom(len(data)),
    ],
    ids=["changed", "truncated", "doubled", "replayed", "injected", "random"],
)
def test_tampering_closes_the_channel(
    bench: Bench, direction: str, tamper: Callable[[list[bytes], bytes], bytes]
) -> None:
    wire = Wire(bench)
    old: list[bytes] = []

    def record(data: bytes) -> bytes:
        old.append(data)
        return data

    setattr(wire, direction, record)
    client = ChannelClient(wire, identity=OWNER)
    client.request(Diary.guid, 1, b"mine")
    setattr(wire, direction, lambda data: tamper(old, data))

    def write_more() -> None:
        for number in range(3):
            client.request(Diary.guid, 1, b"more %d" % number)

    with pytest.raises(ChannelClosed):
        write_more()
    with user(bench) as fresh:
        # Nothing that was not asked for was done, and nothing twice.
        pages = fresh.request(Diary.guid, 0).split(b"\n")
        assert pages == [b"mine", *(b"more %d" % number for number in range(len(pages) - 1))]


def test_reordered_records(bench: Bench) -> None:
    wire = Wire(bench)
    client = ChannelClient(wire, identity=OWNER)
    held: list[bytes] = []
    wire.up = lambda data: held.append(data) or b""  # type: ignore[func-returns-value]
    client.send(Diary.guid, 1, b"first")
    client.send(Diary.guid, 1, b"second")
    assert len(held) == 2
    wire.up = lambda data: data
    wire.connection.send(held[1] + held[0])
    with pytest.raises(ChannelClosed):
        client.receive()
    with user(bench) as fresh:
        assert fresh.request(Diary.guid, 0) == b""


def test_carrier_sees_no_plain_text(bench: Bench) -> None:
    wire = Wire(bench)
    seen: list[bytes] = []
    wire.up = wire.down = lambda data: seen.append(data) or data  # type: ignore[func-returns-value]
    client = ChannelClient(wire, identity=OWNER)
    client.request(Diary.guid, 1, b"a secret of the user")
    assert client.request(Diary.guid, 0) == b"a secret of the user"
    assert b"secret" not in b"".join(seen)
    assert b"secret" not in bytes(bench.memory.buf[SHARED : SHARED + MIN_SHARED])


def test_recorded_session_played_again(bench: Bench) -> None:
    wire = Wire(bench)
    sent: list[bytes] = []
    wire.up = lambda data: sent.append(data) or data  # type: ignore[func-returns-value]
    with ChannelClient(wire, identity=OWNER) as client:
        client.request(Diary.guid, 1, b"once")
    again = Wire(bench)
    for data in sent:
        again.send(data)
        bench.channel.run()
    with user(bench) as fresh:
        assert fresh.request(Diary.guid, 0) == b"once"


def test_old_versions_of_tls_are_refused(bench: Bench) -> None:
    from OpenSSL import SSL

    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    connection = SSL.Connection(context, None)
    connection.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        connection.do_handshake()
    wire = Wire(bench)
    wire.send(connection.bio_read(16384))
    bench.channel.run()
    assert not wire.connection.is_open


def spoil_rings(bench: Bench, data: bytes, offset: int) -> None:
    """As the kernel at VMPL 3 can: the pages are shared memory."""
    bench.kernel.write(AREA.gpa + offset, data, private=False)


def test_the_kernel_cannot_reach_the_pages_but_as_shared_memory(bench: Bench) -> None:
    with pytest.raises(RmpViolation):
        bench.kernel.read(AREA.gpa, 16)
    spoil_rings(bench, b"\xff", 0x80)


@pytest.mark.parametrize("offset", [0x40, 0xC0, 0x100, 0x140])
def test_spoilt_counters_end_connections_and_new_ones_work(bench: Bench, offset: int) -> None:
    client = user(bench)
    ping(client)
    spoil_rings(bench, b"\xff\xff\xff\x7f", offset)
    with pytest.raises(ChannelClosed):
        pings(client)
    comes_back(bench)


def test_a_counter_of_veilmons_is_put_right_as_soon_as_it_is_entered(bench: Bench) -> None:
    """The host goes by it: as long as it is wrong, it would wait for VeilMon."""
    bench.channel.run()
    spoil_rings(bench, b"\xff\xff\xff\x7f", 0x140)
    bench.enter(0)
    assert bench.kernel.read(AREA.gpa + 0x140, 4, private=False) == bytes(4)


def pings(client: ChannelClient) -> None:
    for _ in range(3):
        ping(client)


def comes_back(bench: Bench) -> None:
    """A few tries may find what is left of the spoilt rings."""
    for _ in range(4):
        try:
            with user(bench) as again:
                ping(again)
            break
        except ChannelClosed:
            continue
    else:
        pytest.fail("the channel did not come back")
    assert bench.call(0, 6, 1).rax == 0


@settings(max_examples=examples(40), deadline=None)
@given(st.integers(0, AREA.size - 1), st.binary(min_size=1, max_size=64), st.booleans())
def test_whatever_is_written_there(offset: int, data: bytes, during: bool) -> None:
    bench = Bench(services=Services, owners=[OWNER.fingerprint]).boot()
    try:
        client = user(bench)
        spoil_rings(bench, data[: AREA.size - offset], offset)
        if during:
            ping(client)
    except ChannelClosed:
        pass
    assert bench.call(0, 6, 1).rax == 0, "the kernel is served on"
    comes_back(bench)


@pytest.mark.parametrize(
    "frames",
    [
        pack_frame(1, FrameKind.OPEN) * 2,
        pack_frame(9, FrameKind.DATA, b"to nobody"),
        pack_frame(1, FrameKind.OPEN) + pack_frame(1, FrameKind.CREDIT, b"\xff\xff\xff\xff"),
        pack_frame(1, FrameKind.OPEN) + pack_frame(1, FrameKind.DATA, bytes(MAX_FRAME_DATA)) * 3,
        b"\xff" * 40,
    ],
)
def test_frames_of_a_hostile_host(bench: Bench, frames: bytes) -> None:
    bench.channel.device._waiting += frames
    bench.channel.device.flush()
    bench.channel.run()
    assert bench.call(0, 6, 1).rax == 0


def test_pages_taken_away(bench: Bench) -> None:
    """A hostile host makes them private again: VeilMon meets memory that is not validated."""
    client = user(bench)
    assert bench.host.rmpupdate(AREA.gpa, assigned=True) == 0
    with pytest.raises(ChannelClosed):
        ping(client)
    bench.enter(0)
    assert bench.call(0, 6, 1).rax == 0


@pytest.mark.parametrize("value", [2, 1 << 32 | 2, (1 << 64) - 1])
def test_what_the_host_answers_to_the_doorbell(bench: Bench, value: int) -> None:
    """A host that lies, or a kernel that writes where its answers lie: VeilMon and what the services keep go on."""
    rung: list[int] = []

    def lie(request: int) -> int | None:
        if request & MSR_INFO_MASK or bench.host.read_u64(request + GhcbField.SW_EXITCODE) != NaeEvent.IOIO:
            return None
        answer = bench._msr(bench.vcpus[0], request)
        bench.host.write_u64(request + GhcbField.SW_EXITINFO1, value)
        rung.append(request)
        return answer

    bench.on_request = lie
    with user(bench) as client:
        pings(client)
    assert rung
    assert bench.call(0, 6, 1).rax == 0


@pytest.mark.parametrize("value", [0x100000 // PAGE, DOORBELL_DATA, DOORBELL_SPOILT])
def test_only_veilmon_rings(bench: Bench, value: int) -> None:
    """The kernel says that the rings are in its memory, or spoilt: the port is VMPL 0's."""
    with user(bench) as client:
        ping(client)
        for vmpl in (1, 2, 3):
            bench.channel.port_write(DOORBELL_PORT, value, vmpl)
        ping(client)
    if value == DOORBELL_SPOILT:
        # The counter-test: said by VMPL 0 it ends connections.
        client = user(bench)
        bench.channel.port_write(DOORBELL_PORT, value)
        with pytest.raises(ChannelClosed):
            pings(client)


def kernel_announces(bench: Bench, vmpl: int) -> bytes:
    """Rings of the kernel, announced from a level; what lies in them after a user came."""
    fake = ChannelArea(0x200000)
    bench.host.psmash(fake.gpa)
    for gpa in range(fake.gpa, fake.gpa + fake.size, PAGE):
        assert bench.host.rmpupdate(gpa, assigned=False) == 0
    device = bench.channel.device
    bench.channel.port_write(DOORBELL_PORT, fake.gpa // PAGE, vmpl)
    bench.host.write(fake.gpa + 0x140, device._generation.to_bytes(4, "little"))
    device.open().send(b"what a user sends")
    return bench.host.read(fake.gpa + AREA_HEADER, 64)


def test_rings_whose_pages_are_gone_are_not_elsewhere(bench: Bench) -> None:
    """Once the host cannot reach the pages, who announces others is the kernel: nothing is carried to it."""
    assert bench.host.rmpupdate(AREA.gpa, assigned=True) == 0
    bench.channel.device.open()
    bench.channel.run()
    assert not bench.channel.device.ready
    for vmpl in (3, 0):
        assert b"what a user sends" not in kernel_announces(bench, vmpl)
    assert bench.call(0, 6, 1).rax == 0, "VeilMon serves on"


def test_a_device_that_forgets_believes_the_kernel(bench: Bench) -> None:
    """The counter-test: a device that has heard nobody, and takes the kernel for VMPL 0."""
    bench.channel.device.load({"gpa": 0})
    assert b"what a user sends" in kernel_announces(bench, 0)
