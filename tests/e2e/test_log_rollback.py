# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines that the host starts again from an old snapshot, or two of them: users who remember notice it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.hostile_module import HostileKernel
from tests.e2e.log_guest import log_reader, records_of
from veil.cvm import ConfidentialVM
from veil.formats.log import EntryKind
from veil.remote.errors import VerificationFailed
from veil.remote.log.reader import LogState

pytestmark = pytest.mark.open_kernel("a module of the tests' own makes the records")


@pytest.fixture
def start(resume: Callable[[], ConfidentialVM], tmp_path: Path) -> Iterator[Callable[[], ConfidentialVM]]:
    """Makes machines from one snapshot of a guest that can make records."""
    vm = resume()
    HostileKernel(vm, tmp_path)
    vm.snapshot(tmp_path / "old")
    made: list[ConfidentialVM] = []

    def make() -> ConfidentialVM:
        made.append(ConfidentialVM.restore(tmp_path / "old"))
        return made[-1]

    yield make
    for item in made:
        item.close()


def make_records(vm: ConfidentialVM, count: int) -> None:
    line = f"insmod hostile.ko attack=records text=made count={count} && rmmod hostile"
    assert vm.run(["sh", "-c", line], timeout=20).exit_status == 0


def remember(vm: ConfidentialVM, known: LogState | None = None) -> LogState:
    """A user fetches, verifies, and writes down what he knows."""
    reading = log_reader(vm, known)
    list(reading.fetch())
    return LogState.load(json.loads(reading.state.pack()))


def test_an_old_snapshot(start: Callable[[], ConfidentialVM]) -> None:
    vm = start()
    make_records(vm, 20)
    known = remember(vm)
    # The machine itself goes on, as far as its user can tell.
    make_records(vm, 1)
    assert remember(vm, known).tree.size > known.tree.size

    old = start()
    with pytest.raises(VerificationFailed, match="taken back to an older state"):
        remember(old, known)
    # Nor when it has more entries than were verified: its clock is behind, and they are not the same entries.
    make_records(old, 30)
    with pytest.raises(VerificationFailed, match=r"older state|forked after it was verified last"):
        remember(old, known)
    # A user who remembers nothing cannot tell the time, but the log says what was done.
    entries = list(log_reader(old).fetch())
    assert EntryKind.RESUMED in [entry.kind for entry in entries]
    assert len([item for item in records_of(entries) if b"made" in item.text]) == 30


def test_two_machines_from_one_snapshot(start: Callable[[], ConfidentialVM]) -> None:
    """Each goes on with the same records: a user of one refuses the other, whichever is ahead."""
    pair = start(), start()
    known = []
    for vm in pair:
        make_records(vm, 5)
        known.append(remember(vm))
    for mine, other in ((0, 1), (1, 0)):
        make_records(pair[other], 5)
        with pytest.raises(VerificationFailed, match=r"older state|fork"):
            remember(pair[other], known[mine])
        known[other] = remember(pair[other], known[other])


def test_what_nobody_had_fetched(resume: Callable[[], ConfidentialVM], tmp_path: Path) -> None:
    """Entries between the snapshot and its start are gone, and all that shows is that the machine was resumed."""
    vm = resume()
    HostileKernel(vm, tmp_path)
    known = remember(vm)
    vm.snapshot(tmp_path / "old")
    make_records(vm, 5)
    with closing(ConfidentialVM.restore(tmp_path / "old")) as old:
        entries = list(log_reader(old, known).fetch())
    assert not [item for item in records_of(entries) if b"made" in item.text]
    assert EntryKind.RESUMED in [entry.kind for entry in entries]
    # Fetched in time, they would be missed.
    known = remember(vm, known)
    again = ConfidentialVM.restore(tmp_path / "old")
    with closing(again), pytest.raises(VerificationFailed, match="older state"):
        remember(again, known)
