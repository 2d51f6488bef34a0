# SPDX-License-Identifier: GPL-2.0-or-later
"""Panics on the console."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from veil.host import GuestPanic, GuestReset, MalformedGhcb, TripleFault
from veil.host.panic_messages import PanicWatcher

REPORT = (
    b"[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n"
    b"[    1.0] CPU: 0 PID: 1\r\n"
    b"[    1.0] ---[ end Kernel panic - not syncing: VFS: Unable to mount root fs ]---\r\n"
)


@given(st.lists(st.integers(0, len(REPORT)), max_size=8))
def test_seen_however_it_is_cut(cuts: list[int]) -> None:
    seen: list[GuestPanic] = []
    watcher = PanicWatcher(seen.append)
    bounds = [0, *sorted(cuts), len(REPORT)]
    for start, end in itertools.pairwise(bounds):
        watcher.feed(REPORT[start:end])
    watcher.feed(REPORT)
    assert [str(error) for error in seen] == [
        "the guest's kernel panicked: VFS: Unable to mount root fs; its report is on the console"
    ]


def test_reason_is_known_before_the_end() -> None:
    watcher = PanicWatcher(lambda error: None)
    watcher.feed(REPORT[: REPORT.index(b"\n") + 1])
    assert watcher.reason == "VFS: Unable to mount root fs"


def test_explains_the_reset_after_a_panic() -> None:
    """`panic=-1` resets before the report's last line."""
    watcher = PanicWatcher(lambda error: None)
    reset, lost = GuestReset("reset"), MalformedGhcb("lost", vcpu=0, vmpl=3)
    assert watcher.explain(reset) is reset
    watcher.feed(REPORT[: REPORT.index(b"\n") + 1])
    assert "Unable to mount root fs" in str(watcher.explain(reset))
    assert isinstance(watcher.explain(TripleFault(vcpu=0, vmpl=3)), GuestPanic)
    assert watcher.explain(lost) is lost


@given(st.binary(max_size=3000))
def test_any_output(data: bytes) -> None:
    seen: list[GuestPanic] = []
    watcher = PanicWatcher(seen.append)
    watcher.feed(data)
    assert not seen


def test_hostile_line_is_cut_and_cleaned() -> None:
    seen: list[GuestPanic] = []
    watcher = PanicWatcher(seen.append)
    watcher.feed(b"Kernel panic - not syncing: \x1b[2J" + b"x" * 100_000 + b"\n---[ end Kernel panic ]---\n")
    assert "\x1b" not in str(seen[0])
    assert len(str(seen[0])) < 1000
