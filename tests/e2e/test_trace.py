# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's trace has what its host counted, and can be read however the run ends."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.snapshots import RunSnapshots
from tests.trace_reader import Entry, read_trace
from veil.cvm import ConfidentialVM, Configuration
from veil.cvm.trace import Trace

_VEIL = [sys.executable, "-c", "from veil.cli import main; main()"]


def _fail(line: str) -> None:
    raise AssertionError(line)


def _traced(snapshots: RunSnapshots, path: Path, command: list[str]) -> tuple[list[Entry], dict[str, int]]:
    with Trace(path, _fail) as trace:
        vm = ConfidentialVM.restore(snapshots.of(Configuration.make()), tools=[trace])
        with vm:
            assert vm.run(command).exit_status == 0
            counted = vm.hypervisor.counters()
    return read_trace(path), counted


def test_it_has_what_the_host_counted(snapshots: RunSnapshots, tmp_path: Path) -> None:
    # Programs are measured, which is calls of VeilMon; audit records go to the services.
    entries, counted = _traced(snapshots, tmp_path / "t", ["sh", "-c", "ls -l / >/dev/null; sleep 1.5"])
    exits = Counter(f"exit {entry.name}" for entry in entries if entry.category == "exit")
    assert exits == {name: count for name, count in counted.items() if name.startswith("exit ")}
    switches = [entry for entry in entries if entry.category == "switch"]
    assert len(switches) == counted.get("msr RUN_VMPL", 0) + counted.get("nae RUN_VMPL", 0) > 0
    assert {entry.values["target"] for entry in switches} >= {1, 3}
    assert sum(entry.category == "page_state" for entry in entries) == counted.get("page state changes", 0)
    requests = [entry for entry in entries if entry.category == "ghcb"]
    asked = [name for name in counted if name.startswith(("msr ", "nae "))]
    assert len(requests) == sum(counted[name] for name in asked)
    # Each level runs at one time: what a VCPU does is one slice after the other.
    runs = sorted((entry for entry in entries if entry.category == "vmpl"), key=lambda entry: entry.begin)
    assert all(one.end is not None and one.end <= other.begin for one, other in itertools.pairwise(runs))
    heartbeats = [entry for entry in entries if entry.name == "log HEARTBEAT"]
    assert heartbeats
    assert all(entry.track == ("VCPU 0", "VMPL 3") and entry.category == "service" for entry in heartbeats)


def test_nobody_looks_on_where_nobody_asked(vm: ConfidentialVM) -> None:
    assert vm.hypervisor.on_event is None


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.usefixtures("kept")
def test_it_can_be_read_when_the_run_is_cut_off(end: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "t"
    process = subprocess.Popen([*_VEIL, "run", "--trace", str(path), "--", "sleep", "1000"], stderr=subprocess.PIPE)
    try:
        patience = time.monotonic() + 120
        while not (path.exists() and path.stat().st_size > 20_000) and time.monotonic() < patience:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(end)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert b"Traceback" not in said
    assert process.returncode == (130 if end == signal.SIGINT else -end)
    assert len([entry for entry in read_trace(path) if entry.category == "exit"]) > 100


@pytest.mark.usefixtures("kept")
def test_a_place_where_no_file_can_be_is_one_line() -> None:
    done = subprocess.run(
        [*_VEIL, "run", "--trace", "/none/t", "--", "true"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (125, "veil: cannot write the trace /none/t: No such file or directory\n")
