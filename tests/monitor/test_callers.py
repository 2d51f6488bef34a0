# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may make which call: each call of VeilMon and of each service, in each role."""

from __future__ import annotations

import enum
import struct
import uuid
from collections.abc import Mapping

import pytest

from tests.monitor.harness import Bench, parameters
from tests.services.enc.enclave_bench import LAYOUT
from tests.services.log.harness import OWNER, READER, SMALLEST, boot, log, user
from veil.formats.enclave_calls import ENC_GUID
from veil.formats.enclave_reports import ATTEST_CALL, EnclaveUserCall, Provision
from veil.formats.kci import KCI_GUID
from veil.formats.kci_status import UserCall as KciCall
from veil.formats.log import LOG_GUID, UserCall
from veil.formats.monitor_calls import MonitorCall
from veil.formats.roles import Call, Role, admit
from veil.formats.services_manifest import CHANNEL_SERVICE
from veil.formats.status import Refused, Status
from veil.monitor.channel.user_requests import Requests
from veil.monitor.parameters import MonitorParameters
from veil.remote.channel.client import ChannelClient, RequestFailed
from veil.remote.channel.identity import UserKey
from veil.services.enc.enclave import Enclave, State
from veil.services.enc.service import EncService
from veil.services.kci.service import KciService
from veil.services.log import LogService
from veil.services.protected import ProtectedServices

STRANGER = UserKey.generate()
#: who each call is for; a call that is new must be added here, too
EXPECTED: dict[tuple[uuid.UUID, int], Role] = {
    (CHANNEL_SERVICE, MonitorCall.PING): Role.ANYONE,
    (CHANNEL_SERVICE, MonitorCall.ATTEST): Role.ANYONE,
    (CHANNEL_SERVICE, MonitorCall.STATUS): Role.READER,
    (LOG_GUID, UserCall.HEAD): Role.READER,
    (LOG_GUID, UserCall.FETCH): Role.READER,
    (LOG_GUID, UserCall.RANGE): Role.READER,
    (LOG_GUID, UserCall.INCLUSION): Role.READER,
    (LOG_GUID, UserCall.CONSISTENCY): Role.READER,
    (LOG_GUID, UserCall.RULES): Role.READER,
    (LOG_GUID, UserCall.ACKNOWLEDGE): Role.OWNER,
    (LOG_GUID, UserCall.SET_RULES): Role.OWNER,
    (KCI_GUID, KciCall.STATUS): Role.READER,
    (ENC_GUID, EnclaveUserCall.LIST): Role.READER,
    (ENC_GUID, EnclaveUserCall.ATTEST): Role.READER,
    (ENC_GUID, EnclaveUserCall.PROVISION): Role.OWNER,
}
#: arguments with which each succeeds
BODIES: dict[tuple[uuid.UUID, int], bytes] = {
    (CHANNEL_SERVICE, MonitorCall.ATTEST): bytes(64),
    (LOG_GUID, UserCall.FETCH): struct.pack("<QI", 0, 1 << 16),
    (LOG_GUID, UserCall.INCLUSION): struct.pack("<QQ", 0, 2),
    (LOG_GUID, UserCall.CONSISTENCY): struct.pack("<QQ", 1, 2),
    (LOG_GUID, UserCall.ACKNOWLEDGE): struct.pack("<Q", 0),
    (LOG_GUID, UserCall.SET_RULES): b"-D\n",
    (ENC_GUID, EnclaveUserCall.ATTEST): ATTEST_CALL.pack(1, bytes(64)),
    (ENC_GUID, EnclaveUserCall.PROVISION): Provision(bytes(48), b"name", b"secret").pack(),
}
IDENTITIES: dict[str, tuple[UserKey | None, Role]] = {
    "no key": (None, Role.ANYONE),
    "unknown key": (STRANGER, Role.ANYONE),
    "reader": (READER, Role.READER),
    "owner": (OWNER, Role.OWNER),
}


@pytest.fixture(scope="module")
def bench() -> Bench:
    settings = {"log": {"memory": SMALLEST}}
    owners, readers = [OWNER.fingerprint], [READER.fingerprint]
    bench = Bench(services=ProtectedServices, settings=settings, owners=owners, readers=readers).boot()
    log(bench, 1)
    assert bench.services is not None
    (enc,) = (service for service in bench.services.services if isinstance(service, EncService))
    enclave = enc._enclaves[1] = Enclave(1, LAYOUT)
    enclave.state = State.READY
    return bench


@pytest.mark.parametrize(
    ("guid", "numbers", "table"),
    [
        (CHANNEL_SERVICE, MonitorCall, Requests.calls),
        (LOG_GUID, UserCall, LogService.user_calls),
        (KCI_GUID, KciCall, KciService.user_calls),
        (ENC_GUID, EnclaveUserCall, EncService.user_calls),
    ],
    ids=["VeilMon", "log", "kci", "enc"],
)
def test_every_call_is_declared(
    guid: uuid.UUID, numbers: type[enum.IntEnum], table: Mapping[int, Call[object]]
) -> None:
    assert {(guid, call): declared.role for call, declared in table.items()} == {
        key: role for key, role in EXPECTED.items() if key[0] == guid
    }
    assert set(table) == set(numbers)


def test_no_service_is_forgotten_here() -> None:
    assert {kind.guid for kind in ProtectedServices.service_types} == {guid for guid, _ in EXPECTED} - {CHANNEL_SERVICE}


@pytest.mark.parametrize("identity", IDENTITIES)
@pytest.mark.parametrize("asked", EXPECTED, ids=lambda asked: asked[1].name)
def test_each_call_in_each_role(bench: Bench, asked: tuple[uuid.UUID, int], identity: str) -> None:
    key, role = IDENTITIES[identity]
    with user(bench, key) as client:
        if role >= EXPECTED[asked]:
            client.request(*asked, BODIES.get(asked, b""))
            return
        with pytest.raises(RequestFailed) as caught:
            client.request(*asked, BODIES.get(asked, b""))
    assert caught.value.status == Status.NOT_ALLOWED
    assert "1.000:1" not in str(caught.value), "what is refused says nothing of the records"


@pytest.mark.parametrize("role", Role)
def test_nobody_may_make_a_call_that_is_not_declared(bench: Bench, role: Role) -> None:
    with pytest.raises(Refused) as caught:
        admit({}, 0, role, "VeilMon")
    assert caught.value.status == Status.UNKNOWN_CALL
    identity = {Role.ANYONE: None, Role.READER: READER, Role.OWNER: OWNER}[role]
    with user(bench, identity) as client:
        for guid in (CHANNEL_SERVICE, LOG_GUID, KCI_GUID):
            with pytest.raises(RequestFailed, match="has no call 4660"):
                client.request(guid, 0x1234)


def test_a_call_that_is_for_anyone_is_answered(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    """The counter-test: it is the declared role that keeps records from strangers."""
    fetch = LogService.user_calls[UserCall.FETCH]
    monkeypatch.setitem(LogService.user_calls, UserCall.FETCH, Call(Role.ANYONE, fetch.handler))
    with user(bench, None) as client:
        assert b"1.000:1" in client.request(LOG_GUID, UserCall.FETCH, BODIES[LOG_GUID, UserCall.FETCH])


def test_a_reader_who_is_an_owner_too() -> None:
    both = OWNER.fingerprint
    layout = MonitorParameters.parse(bytes(parameters(owners=[both], readers=[both, READER.fingerprint])))
    assert layout.roles() == {both: Role.OWNER, READER.fingerprint: Role.READER}


def test_readers_are_no_strangers() -> None:
    """Connections of strangers make room for others; those of readers stay."""
    from tests.monitor.wire import Wire, ping

    bench = boot()
    with ChannelClient(Wire(bench), identity=READER) as reading:
        strangers = [Wire(bench) for _ in range(300)]
        bench.channel.run()
        ping(reading)
        assert any(not wire.connection.is_open for wire in strangers)
