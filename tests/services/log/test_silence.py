# SPDX-License-Identifier: GPL-2.0-or-later
"""What the service knows of a kernel's silence, and puts into the log."""

from __future__ import annotations

from tests.services.log.desk import Desk
from veil.formats.log import AuditState, EntryKind, Heartbeat, KernelCall, Silence
from veil.services.log.silence import Ear

NS = 1_000_000_000
BEAT = Heartbeat(AuditState.ON, 0, 7).pack()


def runs(ear: Ear, start: float, seconds: int) -> list[Silence]:
    return [told for step in range(seconds) if (told := ear.ran(int((start + step + 1) * NS))) is not None]


def test_a_kernel_that_calls() -> None:
    ear = Ear(0)
    assert [ear.heard(step * NS, beat=True) for step in range(1, 100)] == [None] * 99


def test_a_silence_while_the_services_run() -> None:
    """Told in the middle of it, the more seldom the longer it lasts."""
    ear = Ear(0)
    ear.heard(0, beat=True)
    assert [told.awake_ns // NS for told in runs(ear, 0, 100)] == [5, 10, 20, 40, 80]
    assert ear.heard(101 * NS, beat=False) == Silence(101 * NS, 101 * NS)
    assert ear.heard(102 * NS, beat=True) is None
    assert [told.awake_ns // NS for told in runs(ear, 102, 6)] == [5]


def test_a_silence_in_which_nothing_is_run() -> None:
    ear = Ear(0)
    ear.heard(0, beat=True)
    assert ear.ran(60 * NS) is None
    assert ear.ran(61 * NS) is None
    assert ear.heard(62 * NS, beat=True) == Silence(62 * NS, 2 * NS)


def test_no_silence_before_the_first_heartbeat() -> None:
    ear = Ear(0)
    assert runs(ear, 0, 30) == []
    assert ear.heard(31 * NS, beat=True) is None


def silences(desk: Desk) -> list[Silence]:
    return [Silence.parse(item.body) for item in desk.reader().fetch() if item.kind == EntryKind.SILENCE]


def test_told_in_the_log_before_the_kernel_calls_again() -> None:
    desk = Desk()
    desk.kernel(KernelCall.HEARTBEAT, BEAT)
    for _ in range(7):
        desk.now += NS
        desk.service.ran()
    assert silences(desk) == [Silence(5 * NS, 5 * NS)]


def test_told_when_there_is_room_and_after_a_snapshot() -> None:
    desk = Desk()
    desk.kernel(KernelCall.HEARTBEAT, BEAT)
    while desk.kernel(KernelCall.RECORDS, bytes(3000), after=1000).name == "OK":
        pass
    while desk.kernel(KernelCall.RECORDS, b"", after=1000).name == "OK":
        pass
    for _ in range(7):
        desk.now += NS
        desk.service.ran()
    reader = desk.reader()
    assert EntryKind.SILENCE not in [item.kind for item in reader.fetch()]
    desk.restore(desk.save())
    reader.acknowledge()
    assert [item.kind for item in reader.fetch()] == [EntryKind.RESUMED, EntryKind.SILENCE]


def test_calls_that_wait_for_room_are_no_silence() -> None:
    desk = Desk()
    desk.kernel(KernelCall.HEARTBEAT, BEAT)
    while desk.kernel(KernelCall.RECORDS, bytes(3000), after=1000).name == "OK":
        pass
    for _ in range(10):
        desk.kernel(KernelCall.RECORDS, bytes(3000), after=NS)
        desk.service.ran()
    reader = desk.reader()
    list(reader.fetch())
    assert desk.now - reader.head().last_ns < NS
    reader.acknowledge()
    desk.kernel(KernelCall.HEARTBEAT, BEAT)
    assert silences(desk) == []
