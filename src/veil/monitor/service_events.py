# SPDX-License-Identifier: GPL-2.0-or-later
"""What VeilMon has to tell the services of: noted while it is done, told before the kernel goes on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.service_domain import ServiceInfo
from veil.formats.service_events import MAX_HEARD, Event, Heard, Report

__all__ = ["Hearing"]


class Hearing:
    """What any service hears of, by its measured class, and what is yet to be told."""

    def __init__(self, events: frozenset[Event], guards: frozenset[Owner]) -> None:
        self._events = events
        self.guards = guards
        self._noted: list[Heard] = []
        self._lost = 0

    @classmethod
    def of(cls, services: Iterable[ServiceInfo]) -> Hearing | None:
        """None if no service hears of anything: then nothing is noted, and nobody is asked."""
        services = list(services)
        events = frozenset[Event]().union(*(service.hears for service in services))
        guards = frozenset[Owner]().union(*(service.guards for service in services))
        return cls(events, guards) if events or guards else None

    @property
    def waits(self) -> bool:
        """Is there something to tell?"""
        return bool(self._noted or self._lost)

    def dump(self) -> dict[str, Any]:
        """For a snapshot: what is yet to be told."""
        return {"noted": [list(item) for item in self._noted], "lost": self._lost}

    def load(self, state: dict[str, Any]) -> None:
        self._noted = [Heard(Event(event), vcpu, gpa, size) for event, vcpu, gpa, size in state["noted"]]
        self._lost = state["lost"]

    def pages(self, vcpu: int, gpa: int, size: int, *, taken: bool) -> None:
        """PVALIDATE of a page or of 2 MiB is done: the kernel took it, or gives it back."""
        self._note(Event.PAGES_TAKEN if taken else Event.PAGES_GIVEN, vcpu, gpa, size)

    def created(self, vcpu: int, vmsa: int) -> None:
        """A VCPU has a new context of the kernel's."""
        self._note(Event.VCPU_CREATED, vcpu, vmsa)

    def deleted(self, vcpu: int, vmsa: int) -> None:
        """It has one less."""
        self._note(Event.VCPU_DELETED, vcpu, vmsa)

    def _note(self, event: Event, vcpu: int, gpa: int, size: int = PAGE_SIZE) -> None:
        if event not in self._events:
            return
        # A host that never lets a call come to its end must not have VeilMon collect without end.
        if len(self._noted) < MAX_HEARD:
            self._noted.append(Heard(event, vcpu, gpa, size))
        else:
            self._lost += 1

    def lose(self, report: Report) -> None:
        """It was taken and could not be told: the next report counts it."""
        self._lost += len(report.events) + report.lost

    def take(self) -> Report:
        """What is to be told now."""
        report = Report(self._noted, min(self._lost, (1 << 32) - 1))
        self._noted, self._lost = [], 0
        return report
