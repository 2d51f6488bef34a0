# SPDX-License-Identifier: GPL-2.0-or-later
"""The services are run each second, also when nobody asks them anything: the pulse.

They learn from it that time passes in which the kernel could have called, and did not: a kernel that is silent from one
that is not run. A host that leaves it out is found out in the log, by its readers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from veil.host.vcpu import Vcpu

__all__ = ["FOREVER", "PULSE_NS", "Pulse"]

#: The services are run at least every other one of these.
PULSE_NS = 1_000_000_000

FOREVER = 1 << 63


class Pulse:
    """When the next one is due. It begins when services run for the first time; without services it never does."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self.due_ns = FOREVER
        #: where the services run without having been called
        self.vcpu: Vcpu | None = None
        self._ran = False

    def begin(self) -> None:
        """There are services: from now on it is due every second."""
        self.due_ns = self._clock() + PULSE_NS

    def services_run(self) -> None:
        """Somebody called them, or the pulse did."""
        self._ran = True
        if self.due_ns == FOREVER:
            self.begin()

    def kernel_runs(self) -> None:
        """The kernel of `vcpu` goes on. The pulse's second begins here: however long one takes, none follows it at
        once."""
        self.vcpu = None
        self.begin()

    def choose(self, now: int, interruptible: Iterable[Vcpu]) -> Vcpu | None:
        """A pulse is due: the VCPU to run the services on; None if somebody called them meanwhile, or nobody can be
        interrupted."""
        self.due_ns = now + PULSE_NS
        called, self._ran = self._ran, False
        if called:
            return None
        vcpu = next(iter(interruptible), None)
        if vcpu is not None:
            self.vcpu = vcpu
        return vcpu
