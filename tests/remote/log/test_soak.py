# SPDX-License-Identifier: GPL-2.0-or-later
"""A million audit records through the service, to the user, and out of the service's memory."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.services.log.desk import BOOT_MS, Desk
from veil.formats.log import AuditRecord, KernelCall, pack_records
from veil.formats.status import Status
from veil.remote.log.analysis import LogAnalysis
from veil.remote.log.folder import LogFolder

_RECORDS = 1_000_000
_STEP_NS = 100_000


def _peak() -> int:
    """The most memory that this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _collect(desk: Desk, folder: LogFolder) -> None:
    reader = desk.reader(folder.known())
    with folder.lock():
        folder.add(list(reader.fetch()), reader.state)
    reader.acknowledge()


@pytest.mark.soak
def test_a_million_records(tmp_path: Path) -> None:
    desk = Desk(4 << 20, "halt")
    folder = LogFolder(tmp_path)
    warm, rounds, beats = 0, 0, 0
    for number in range(_RECORDS):
        ms = BOOT_MS + desk.now // 1_000_000
        body = pack_records(
            [AuditRecord(1326, b"audit(%d.%03d:%d): auid=1000 uid=1000 sig=0" % (ms // 1000, ms % 1000, number + 7))]
        )
        while desk.kernel(KernelCall.RECORDS, body, after=_STEP_NS) == Status.FULL:
            _collect(desk, folder)
            rounds += 1
        if number % 10_000 == 0:
            while desk.kernel(KernelCall.HEARTBEAT, b"", after=0) == Status.FULL:
                _collect(desk, folder)
            beats += 1
        if number == _RECORDS // 10:
            folder.verify()
            warm = _peak()
    _collect(desk, folder)
    assert rounds > 10
    analysis = LogAnalysis()
    for entry in folder.verified():
        analysis.feed(entry)
    state = folder.known()
    assert state is not None
    assert state.seen is not None
    analysis.finish(state.seen.head)
    assert (analysis.summary.records, analysis.summary.entries) == (_RECORDS, _RECORDS + beats + 1)
    assert analysis.findings.items == []
    assert desk.service.store.first == desk.service.store.next
    assert _peak() - warm < 32 << 20
