# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-LOG on the bench: a kernel that logs, users who read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.monitor.harness import Bench
from tests.monitor.wire import Wire
from veil.formats.log import LOG_NUMBER, AuditRecord, EntryKind, KernelCall, LogEntry, pack_records, parse_records
from veil.formats.status import Status
from veil.monitor import VeilMon
from veil.remote.channel.client import ChannelClient
from veil.remote.channel.identity import UserKey
from veil.remote.log.reader import LogReader, LogState
from veil.services import ServiceDomain
from veil.services.log import LogService

__all__ = [
    "OWNER", "READER", "SMALLEST", "Machine", "Services", "boot", "log", "lying", "manifest", "reader", "record",
    "records", "service", "user",
]  # fmt: skip

OWNER, READER = UserKey.generate(), UserKey.generate()
SMALLEST = 64 << 10


class Services(ServiceDomain):
    """The log alone."""

    service_types = (LogService,)


def boot(full: str = "halt", **options: Any) -> Bench:
    """A machine with a small log."""
    settings = {"log": {"memory": SMALLEST, "full": full}}
    owners, readers = [OWNER.fingerprint], [READER.fingerprint]
    return Bench(services=Services, settings=settings, owners=owners, readers=readers, **options).boot()


def record(number: int) -> AuditRecord:
    """Different for each number."""
    return AuditRecord(1300, b"audit(1.000:%d): syscall=59" % number)


def log(bench: Bench, *numbers: int, vcpu: int = 0) -> tuple[Status, bytes]:
    """The kernel hands these records over in one call."""
    return bench.ask(LOG_NUMBER, KernelCall.RECORDS, pack_records([record(number) for number in numbers]), vcpu=vcpu)


def service(bench: Bench) -> LogService:
    """The service itself, to look at what it keeps."""
    assert bench.services is not None
    (found,) = bench.services.services
    assert isinstance(found, LogService)
    return found


def manifest(bench: Bench) -> bytes:
    """What attestation would say of the log."""
    return bench.monitor.state.services[0].manifest


def user(bench: Bench, identity: UserKey | None = OWNER) -> ChannelClient:
    """A user's channel."""
    return ChannelClient(Wire(bench), identity=identity)


def reader(bench: Bench, known: LogState | None = None, identity: UserKey | None = OWNER) -> LogReader:
    """A user who reads the log."""
    return LogReader(user(bench, identity), manifest(bench), known=known)


def records(entries: list[LogEntry]) -> list[AuditRecord]:
    """The kernel's records in entries."""
    return [item for entry in entries if entry.kind == EntryKind.RECORDS for item in parse_records(entry.body)]


class _Liar:
    """Stands in for a channel's client; changes what the log answers."""

    def __init__(self, client: ChannelClient, change: Callable[[int, bytes], bytes]) -> None:
        self._client, self._change = client, change

    def request(self, guid: Any, call: int, body: bytes = b"") -> bytes:
        return self._change(call, self._client.request(guid, call, body))


def lying(bench: Bench, change: Callable[[int, bytes], bytes], known: LogState | None = None) -> LogReader:
    """A user of a log that lies: `change` gets each call and its honest answer."""
    return LogReader(_Liar(user(bench), change), manifest(bench), known=known)  # type: ignore[arg-type]


class Machine:
    """What the host copied of a running machine, to start it again from there."""

    def __init__(self, bench: Bench) -> None:
        assert bench.services is not None
        self._monitor, self._services = bench.monitor.save(), bench.services.save()
        self._memory = bytes(bench.memory.buf)

    def restore(self, bench: Bench) -> None:
        """The bench's machine goes on from here."""
        monitor, services = VeilMon(), Services()
        monitor.restore(self._monitor)
        services.restore(self._services)
        bench.memory.buf[:] = self._memory
        bench.resume(monitor, services)
        bench.channel.device.load({"gpa": 0})
        bench.channel.device._begin(bench.monitor.state.parameters.channel, 0, 0)
