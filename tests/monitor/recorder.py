# SPDX-License-Identifier: GPL-2.0-or-later
"""The guard on a real VeilMon, which writes down what it is asked and what it hears."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from tests.guarding import PROTECT, Guard
from tests.monitor.faults import tables
from tests.monitor.harness import SMALL, Bench
from veil.formats.service_events import RefusedAccess, Report, Verdict
from veil.formats.status import Status
from veil.monitor import VeilMon
from veil.services import Asking, ServiceDomain

__all__ = ["Recorder", "Recorders", "guard_of", "guarded", "restored"]


class Recorder(Guard):
    """The guard, which does what a test says instead if it says something."""

    say: Callable[[RefusedAccess], Any] | None = None
    listen: Callable[[Report], None] | None = None

    answer: Callable[[Report], Any] = staticmethod(lambda report: None)

    def __init__(self) -> None:
        self.asked: list[RefusedAccess] = []
        self.reports: list[Report] = []

    def access_refused(self, access: RefusedAccess) -> Verdict | Asking[Verdict]:
        self.asked.append(access)
        verdict: Verdict | Asking[Verdict] = super().access_refused(access) if self.say is None else self.say(access)
        return verdict

    def heard(self, report: Report) -> None:
        super().heard(report)
        self.reports.append(report)
        if self.listen is not None:
            self.listen(report)
        return self.answer(report)  # type: ignore[no-any-return]


class Recorders(ServiceDomain):
    service_types = (Recorder,)


def guard_of(bench: Bench) -> Recorder:
    assert bench.services is not None
    (service,) = bench.services.services
    assert isinstance(service, Recorder)
    return service


def restored(bench: Bench) -> tuple[VeilMon, Recorders]:
    """A snapshot's monitor and services."""
    monitor, services = VeilMon(), Recorders()
    monitor.restore(bench.monitor.save())
    assert bench.services is not None
    services.restore(bench.services.save())
    return monitor, services


def guarded() -> Bench:
    """Two VCPUs, and a page of the kernel's that the service guards."""
    bench = Bench(vcpus=2, services=Recorders).boot()
    tables(bench)
    assert bench.ask(Guard.number, PROTECT, struct.pack("<Q", SMALL)) == (Status.OK, b"")
    return bench
