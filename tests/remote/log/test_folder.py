# SPDX-License-Identifier: GPL-2.0-or-later
"""Folders with logs: killed at any time, used by two, changed on the disk, fetched late."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.monitor.harness import Bench
from tests.remote.log.killing import Killed, killing
from tests.services.log.desk import Desk, event
from tests.services.log.harness import boot, log, reader
from veil.formats.errors import FormatError
from veil.formats.log import KernelCall
from veil.remote.errors import RemoteError, VerificationFailed
from veil.remote.log.folder import LogFolder


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def bench() -> Bench:
    return boot()


@pytest.fixture
def folder(tmp_path: Path) -> LogFolder:
    return LogFolder(tmp_path / "evidence")


def fetch(desk: Desk, folder: LogFolder) -> int:
    with folder.lock():
        reader = desk.reader(folder.known())
        return folder.add(list(reader.fetch()), reader.state)


def bodies(folder: LogFolder) -> list[bytes]:
    return [entry.body for entry in folder.entries()]


def test_killed_between_any_two_steps(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veil.remote.log.folder._FLUSH", 300)
    for number in range(10):
        desk.log(number)
    first = desk.save()
    for number in range(10, 20):
        desk.log(number)
    second = desk.save()
    text = b""
    calls, killed = 0, True
    while killed:
        calls += 1
        folder = LogFolder(tmp_path / str(calls))
        # The service is a function of its state here: no RESUMED entry is wanted.
        desk.service.memory.data[:] = first[1]  # type: ignore[attr-defined]
        desk.service.store.load(json.loads(first[0])["store"])
        fetch(desk, folder)
        desk.service.memory.data[:] = second[1]  # type: ignore[attr-defined]
        desk.service.store.load(json.loads(second[0])["store"])
        with monkeypatch.context() as patch:
            killing(patch, calls)
            try:
                fetch(desk, folder)
                killed = False
            except Killed:
                pass
        # Readers see a whole state meanwhile, the old or the new one.
        assert folder.verify().entries in (11, 21)
        fetch(desk, folder)
        assert folder.verify().entries == 21
        found = (folder.path / "audit.log").read_bytes()
        assert found.count(b"type=SYSCALL") == 20
        text = text or found
        assert found == text
    assert calls > 15


def test_killed_before_the_first_state(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.log(1)
    for calls in range(1, 8):
        folder = LogFolder(tmp_path / str(calls))
        with monkeypatch.context() as patch:
            killing(patch, calls)
            with pytest.raises(Killed):
                fetch(desk, folder)
        fetch(desk, folder)
        assert folder.verify().entries == 2


def test_what_is_acknowledged_is_on_the_disk(desk: Desk, folder: LogFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever step is the last: what the log forgot is in the folder."""
    for calls in range(1, 30):
        desk.log(calls)
        with monkeypatch.context() as patch:
            killing(patch, calls % 12 + 1)
            try:
                with folder.lock():
                    reader = desk.reader(folder.known())
                    folder.add(list(reader.fetch()), reader.state)
                    reader.acknowledge()
            except Killed:
                pass
    fetch(desk, folder)
    assert folder.verify().entries == 30


def test_two_processes(folder: LogFolder) -> None:
    program = (
        "import sys; from pathlib import Path; from veil.remote.log.folder import LogFolder\n"
        "with LogFolder(Path(sys.argv[1])).lock(): print('here')"
    )
    command = [sys.executable, "-c", program, str(folder.path)]
    with folder.lock():
        done = subprocess.run(command, capture_output=True, text=True)
        assert "somebody else is fetching into" in done.stderr
        assert done.stdout == ""
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "here\n"


def test_two_without_the_lock(desk: Desk, folder: LogFolder) -> None:
    """What it is for: both fetch the same entries, and both append them."""
    desk.log(1)
    readers = [desk.reader(folder.known()) for _ in range(2)]
    for one in readers:
        folder.add(list(one.fetch()), one.state)
    with pytest.raises(VerificationFailed):
        folder.verify()


def test_who_begins_late_can_verify(desk: Desk, folder: LogFolder, tmp_path: Path) -> None:
    for number in range(5):
        desk.log(number)
    first = desk.reader()
    list(first.fetch())
    first.acknowledge()
    desk.log(5)
    assert fetch(desk, folder) == 1
    assert folder.verify().entries == 1
    desk.log(6)
    assert fetch(desk, folder) == 1
    assert folder.verify().entries == 2
    state = json.loads((folder.path / "state.json").read_text())
    state["begin"]["hashes"][0] = "00" * 32
    (folder.path / "state.json").write_text(json.dumps(state))
    with pytest.raises(VerificationFailed, match="were changed"):
        folder.verify()


def test_states_that_cannot_be(desk: Desk, folder: LogFolder) -> None:
    desk.log(1)
    fetch(desk, folder)
    place = folder.path / "state.json"
    state = json.loads(place.read_text())
    # Python's JSON has "numbers" that are not numbers (NaN).
    for name in ("size", "asked_ns", "entries_bytes", "audit_bytes"):
        for value in (float("inf"), float("nan"), None, "many", "3", -1, 1 << 64, 10**4299, True, 1.5):
            place.write_text(json.dumps({**state, name: value}))
            with pytest.raises(RemoteError, match="unusable"):
                folder.known()
    for text in ("[]", "{", "[" * 100_000):
        place.write_text(text)
        with pytest.raises(RemoteError, match="unusable"):
            folder.known()


@pytest.mark.parametrize("change", ["size", "hashes", "head", "cut"])
def test_changed_states(desk: Desk, folder: LogFolder, change: str) -> None:
    desk.log(1)
    fetch(desk, folder)
    place = folder.path / "state.json"
    state = json.loads(place.read_text())
    if change == "size":
        state |= {"size": 1, "hashes": state["hashes"][:1]}
    elif change == "hashes":
        state["hashes"][0] = "11" * 32
    elif change == "head":
        state["head"] = "00" + state["head"][2:]
    else:
        state["entries_bytes"] -= 1
    place.write_text(json.dumps(state))
    with pytest.raises(VerificationFailed):
        folder.verify()


def test_a_folder_that_lost_entries_gets_no_more(desk: Desk, folder: LogFolder) -> None:
    desk.log(1)
    fetch(desk, folder)
    with open(folder.path / "entries.bin", "r+b") as stream:
        stream.truncate(30)
    desk.log(2)
    with pytest.raises(RemoteError, match="less than was verified"):
        fetch(desk, folder)


def test_entries_are_streamed(desk: Desk, folder: LogFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        desk.log(number)
    fetch(desk, folder)
    whole = bodies(folder)
    for chunk in (1, 7, 24, 100):
        monkeypatch.setattr("veil.formats.log._CHUNK", chunk)
        assert bodies(folder) == whole
    assert len(whole) == 41


def test_what_is_being_written_is_not_read(desk: Desk, folder: LogFolder) -> None:
    fetch(desk, folder)
    with open(folder.path / "entries.bin", "ab") as stream:
        stream.write(b"half an entry")
    assert folder.verify().entries == 1


def test_a_full_log_that_was_taken_back(desk: Desk) -> None:
    """It has no room to say that it was restored, and its entries are the same: its time shows it."""
    snapshot = desk.save()
    while desk.kernel(KernelCall.RECORDS, event(1) * 20).name == "OK":
        snapshot = desk.save()
    while desk.kernel(KernelCall.HEARTBEAT, b"").name == "OK":
        snapshot = desk.save()
    reader = desk.reader()
    desk.now += 10**9
    list(reader.fetch())
    size = desk.service.store.next
    desk.restore(snapshot)
    if desk.service.store.next == size:
        with pytest.raises(VerificationFailed, match="older state"):
            list(desk.reader(reader.state).fetch())
    else:
        pytest.fail("there was room to say it")


def test_the_machines_time_is_bound_to_the_users(desk: Desk) -> None:
    desk.now = 500 * 10**9
    reader = desk.reader()
    list(reader.fetch())
    seen = reader.state.seen
    assert seen is not None
    assert seen.head.time_ns == desk.now
    assert seen.asked_ns <= seen.answered_ns
    assert seen.wall_ns(desk.now - 7) == seen.answered_ns - 7


def test_folder(bench: Bench, tmp_path: Path) -> None:
    folder = LogFolder(tmp_path / "evidence")
    assert folder.known() is None
    log(bench, 1)
    reading = reader(bench)
    assert folder.add(list(reading.fetch()), reading.state) == 2
    log(bench, 2)
    reading = reader(bench, folder.known())
    # An interrupted run leaves more than the state says.
    with open(folder.path / "entries.bin", "ab") as stream:
        stream.write(b"half an entry")
    assert folder.add(list(reading.fetch()), reading.state) == 1
    found = folder.verify()
    assert (found.entries, found.records, found.unreadable) == (3, 2, 0)
    text = (folder.path / "audit.log").read_bytes()
    assert text == b"type=SYSCALL msg=audit(1.000:1): syscall=59\ntype=SYSCALL msg=audit(1.000:2): syscall=59\n"


@pytest.mark.parametrize("at", [0, 10, 30, -1])
def test_changed_folder(bench: Bench, tmp_path: Path, at: int) -> None:
    folder = LogFolder(tmp_path)
    log(bench, 1)
    reading = reader(bench)
    folder.add(list(reading.fetch()), reading.state)
    data = bytearray((tmp_path / "entries.bin").read_bytes())
    data[at] ^= 1
    (tmp_path / "entries.bin").write_bytes(data)
    with pytest.raises((VerificationFailed, RemoteError, FormatError)):
        folder.verify()


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="no log"):
        LogFolder(tmp_path / "none").verify()
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(RemoteError, match="unusable"):
        LogFolder(tmp_path).known()
