# SPDX-License-Identifier: GPL-2.0-or-later
"""A host on which idle time passes at once: where every VCPU sleeps, its clocks leap to what comes next.

The guest and its services see the same times, in the same order, as if somebody had waited: the time stamp counter, the
devices' clock and the host's leap together, never past a timer, the pulse or the end of the host's run. Not for guests
for which other threads or processes have input: that comes in its own time.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

import veil.cvm.running
from veil.host import Hypervisor
from veil.host.devices import Platform
from veil.host.service_pulse import FOREVER
from veil.snp import Machine
from veil.snp.layouts import Vmcb
from veil.snp.machine import DomainSwitches

__all__ = ["NO_PULSE", "let_idle_time_pass"]

#: When the services' pulse is due on a host that sends none. (FOREVER: it begins when they are called.)
NO_PULSE = FOREVER >> 1


class _Clock:
    """The computer's, and what was leapt over."""

    def __init__(self) -> None:
        self.leapt = 0

    def now_ns(self) -> int:
        return time.monotonic_ns() + self.leapt


class _LeapingHost(Hypervisor):
    def __init__(self, machine: Machine, platform: Platform, *arguments: Any, leaps: _Clock, **options: Any) -> None:
        super().__init__(machine, platform, *arguments, clock=leaps.now_ns, **options)
        self._leaps, self._silicon = leaps, machine

    def _sleep(self, end_ns: int) -> None:
        until_ns = min(self._timer_ns, self.pulse.due_ns, end_ns)
        if until_ns != FOREVER and not self._wakeup.is_set():
            left = max(0, until_ns - self._clock())
            self._leaps.leapt += left
            self._silicon.set_tsc(self._silicon.tsc() + left)
        super()._sleep(end_ns)


def let_idle_time_pass(patch: pytest.MonkeyPatch) -> None:
    """On each CVM that is made or restored from now on."""
    clocks: dict[Platform, _Clock] = {}

    def platform(*arguments: Any, **options: Any) -> Platform:
        clock = _Clock()
        made = Platform(*arguments, **{**options, "now_ns": clock.now_ns})
        clocks[made] = clock
        return made

    def host(machine: Machine, platform: Platform, *arguments: Any, **options: Any) -> Hypervisor:
        clock, vmrun, vmrun_switching = clocks.pop(platform), machine.vmrun, machine.vmrun_switching

        # Deadlines of VMRUN are the computer's time; 0 is none.
        def run(vmcb: Vmcb, deadline_ns: int = 0) -> None:
            vmrun(vmcb, deadline_ns and deadline_ns - clock.leapt)

        def run_switching(vmcb: Vmcb, policy: DomainSwitches, deadline_ns: int = 0) -> int:
            return vmrun_switching(vmcb, policy, deadline_ns and deadline_ns - clock.leapt)

        patch.setattr(machine, "vmrun", run)
        patch.setattr(machine, "vmrun_switching", run_switching)
        return _LeapingHost(machine, platform, *arguments, leaps=clock, **options)

    patch.setattr(veil.cvm.running, "Platform", platform)
    patch.setattr(veil.cvm.running, "Hypervisor", host)
