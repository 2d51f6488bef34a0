# SPDX-License-Identifier: GPL-2.0-or-later
"""The file of a trace: tracks, slices, and what becomes of it when its disk is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.small_guest import VMSA, SmallGuest
from tests.trace_reader import Entry, read_trace
from veil.cvm.trace import Trace
from veil.cvm.trace.asked import Asked, Request
from veil.cvm.trace.file import TraceFile
from veil.cvm.trace.tracks import Tracks
from veil.errors import VeilError
from veil.host import Event, ExitEvent, GhcbEvent, GhcbMsrEvent, PageStateEvent, VmplEntryEvent, VmplSwitchEvent
from veil.snp import ExitCode
from veil.snp.layouts import Vmsa

_CALL = Request("svsm", "SVSM CORE PVALIDATE", {"protocol": 0, "call": 1})


class _Asked:
    """The kernel calls VeilMon whenever it asks for VMPL 0."""

    def request(self, vcpu: int, asking: int, target: int) -> Request | None:
        return _CALL if (asking, target) == (3, 0) else None

    def result(self, vcpu: int) -> int | None:
        return 0x8000_0003


def _asked(guest: SmallGuest, *, veilmon: bool = True) -> Asked:
    """Of a VCPU whose kernel is the small guest."""
    vcpu = SimpleNamespace(contexts={3: SimpleNamespace(vmcb=guest.vmcb)})
    return Asked(guest.machine, SimpleNamespace(vcpus=[vcpu], has_veilmon=veilmon))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rax", "name"),
    [
        (1, "SVSM CORE PVALIDATE"),
        (1 << 32, "SVSM ATTESTATION SERVICES"),
        (16 << 32, "SVSM SERVICES REGISTER_BLOCK"),
        (999, "SVSM CORE ?"),
        (77 << 32 | 5, "SVSM"),
    ],
)
def test_calls_have_names(rax: int, name: str) -> None:
    with SmallGuest(vmpl=3) as guest:
        guest.top.write_u64(VMSA + Vmsa.rax.offset, rax)
        guest.top.write_u64(VMSA + Vmsa.rcx.offset, 0x1234)
        request = _asked(guest).request(0, 3, 0)
        assert request is not None
        assert request.name == name
        assert (request.values["protocol"], request.values["call"]) == (rax >> 32, rax & 0xFFFFFFFF)
        assert request.values["rcx"] == 0x1234
        assert _asked(guest).result(0) == rax


def test_a_level_that_is_not_there_asks_nothing() -> None:
    with SmallGuest(vmpl=3) as guest:
        asked = _asked(guest)
        assert [asked.request(0, *levels) for levels in ((0, 3), (1, 0), (0, 1), (3, 1))] == [None] * 4
        guest.share(VMSA)
        assert asked.request(0, 3, 0) is not None


def test_what_only_veilmon_has_is_not_seen_under_another_monitor() -> None:
    with SmallGuest(vmpl=3) as guest:
        enclave = _asked(guest).request(0, 3, 2)
        assert enclave is not None
        assert enclave.name == "enclave runs"
        other = _asked(guest, veilmon=False)
        assert [other.request(0, 3, target) for target in (1, 2)] == [None, None]
        assert other.request(0, 3, 0) is not None, "the SVSM's calls are anybody's"


def _fail(line: str) -> None:
    raise AssertionError(line)


def _written(path: Path, *events: Event) -> list[Entry]:
    file = TraceFile(path, _fail)
    tracks = Tracks(file, _Asked())  # type: ignore[arg-type]
    for event in events:
        tracks.see(event)
    file.close()
    return read_trace(path)


def _of(entries: list[Entry], category: str) -> list[Entry]:
    return [entry for entry in entries if entry.category == category]


def test_a_call_is_a_slice_of_its_caller(tmp_path: Path) -> None:
    entries = _written(
        tmp_path / "t",
        ExitEvent(1, 3, ExitCode.VMGEXIT, 0, 0),
        VmplSwitchEvent(1, 3, 0),
        ExitEvent(1, 0, ExitCode.VMGEXIT, 0, 0),
        VmplSwitchEvent(1, 0, 3),
        ExitEvent(1, 3, ExitCode.HLT, 0, 0),
    )
    (call,) = _of(entries, "svsm")
    assert call.track == ("VCPU 1", "VMPL 3")
    assert (call.name, call.values) == ("SVSM CORE PVALIDATE", {"protocol": 0, "call": 1, "rax": 0x8000_0003})
    runs = {(entry.track[-1], entry.end is None): entry for entry in _of(entries, "vmpl")}
    assert runs["VMPL 0", False].begin == call.begin
    assert runs["VMPL 0", False].end == call.end == runs["VMPL 3", True].begin
    assert [entry.values for entry in _of(entries, "switch")] == [
        {"source": 3, "target": 0}, {"source": 0, "target": 3},
    ]  # fmt: skip
    assert [(entry.track[-1], entry.name) for entry in _of(entries, "exit")] == [
        ("VMPL 3", "VMGEXIT"), ("VMPL 0", "VMGEXIT"), ("VMPL 3", "HLT"),
    ]  # fmt: skip


def test_another_machine_has_tracks_of_its_own(tmp_path: Path) -> None:
    hosts = [SimpleNamespace(on_event=lambda event: None, vcpus=[]) for _ in range(2)]
    with Trace(tmp_path / "t", _fail) as trace:
        for host in hosts:
            trace.attach(None, host)  # type: ignore[arg-type]
            host.on_event(ExitEvent(0, 3, ExitCode.INTR, 0, 0))
    entries = read_trace(tmp_path / "t")
    assert [entry.name for entry in entries] == ["INTR", "INTR", "runs", "runs"]


def test_the_host_runs_a_level_by_itself(tmp_path: Path) -> None:
    entries = _written(tmp_path / "t", VmplEntryEvent(0, 3, 1), ExitEvent(0, 1, ExitCode.VMGEXIT, 0, 0))
    (entry,) = _of(entries, "entry")
    assert (entry.name, entry.track) == ("host: VMPL 3 to 1", ("VCPU 0",))
    assert not _of(entries, "switch")


def test_page_states_and_requests(tmp_path: Path) -> None:
    entries = _written(
        tmp_path / "t",
        PageStateEvent(0, 3, 0x20_0000, 0x20_0000, True),
        PageStateEvent(0, 3, 0x9000, 0x1000, False),
        GhcbMsrEvent(0, 3, 0x1_0000_0014, 0x15),
        GhcbEvent(0, 3, 0x7C, 1, 0, 0, 0),
    )
    assert [(entry.name, entry.values) for entry in _of(entries, "page_state")] == [
        ("page private", {"gpa": 0x20_0000, "size": 0x20_0000}), ("page shared", {"gpa": 0x9000, "size": 0x1000}),
    ]  # fmt: skip
    assert [entry.name for entry in _of(entries, "ghcb")] == ["MSR PAGE_STATE_CHANGE", "GHCB MSR"]


def test_a_guest_makes_no_names(tmp_path: Path) -> None:
    events: list[Event] = [GhcbEvent(0, 3, 1 << 63 | number, 0, 0, 0, 0) for number in range(3000)]
    events += [GhcbMsrEvent(0, 3, number << 12 | 0xFFE, 0) for number in range(3000)]
    entries = _of(_written(tmp_path / "t", *events), "ghcb")
    assert len(entries) == 6000
    assert {entry.name for entry in entries} == {"GHCB request", "MSR request"}
    assert (tmp_path / "t").stat().st_size < 6000 * 100


def test_it_is_written_as_it_goes(tmp_path: Path) -> None:
    file = TraceFile(tmp_path / "t", _fail)
    tracks = Tracks(file, _Asked())  # type: ignore[arg-type]
    for _ in range(2000):
        tracks.see(ExitEvent(0, 3, ExitCode.INTR, 0, 0))
    assert len(_of(read_trace(tmp_path / "t"), "exit")) >= 1000
    file.close()
    assert len(_of(read_trace(tmp_path / "t"), "exit")) == 2000


def test_a_full_disk_ends_it_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    file = TraceFile(tmp_path / "t", said.append)
    tracks = Tracks(file, _Asked())  # type: ignore[arg-type]
    real = os.write
    room = 60_000

    def write(descriptor: int, data: bytes | memoryview) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = real(descriptor, data[:room])
        room -= done
        return done

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        for _ in range(5000):
            tracks.see(ExitEvent(0, 3, ExitCode.INTR, 0, 0))
        file.close()
    assert said == [f"the trace {tmp_path / 't'} ends here: the disk is full"]
    # What was written before is whole.
    assert 400 < len(read_trace(tmp_path / "t")) < 4000


def test_a_file_that_cannot_be_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(VeilError, match=r"^cannot write the trace .*: No such file or directory$"):
        TraceFile(tmp_path / "none" / "t", _fail)
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    with pytest.raises(VeilError, match="cannot write the trace"):
        TraceFile(tmp_path / "link", _fail)
    assert not (tmp_path / "victim").exists()


def test_an_earlier_one_is_replaced(tmp_path: Path) -> None:
    _written(tmp_path / "t", *[ExitEvent(0, 3, ExitCode.INTR, 0, 0)] * 500)
    assert len(_of(_written(tmp_path / "t", ExitEvent(0, 3, ExitCode.HLT, 0, 0)), "exit")) == 1
    assert (tmp_path / "t").stat().st_mode & 0o777 == 0o600
