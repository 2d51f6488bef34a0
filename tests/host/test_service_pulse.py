# SPDX-License-Identifier: GPL-2.0-or-later
"""The services are run each second, by a clock of the tests', and the kernel however long they take."""

from __future__ import annotations

import pytest

from tests.host.fakes import GHCB, VMSA, Guest, Step
from veil.host.service_pulse import PULSE_NS
from veil.snp.exit_codes import ExitCode
from veil.snp.layouts import Vmcb

KERNEL_VMSA, SERVICES_VMSA = 0x2000, 0x3000
RUN_KERNEL = 3 << 32 | 0x016
MS = 1_000_000


class Pulsed(Guest):
    """A kernel that computes and services that only answer pulses; time passes in their steps only."""

    def __init__(self, pulse_ns: int) -> None:
        self.now = 0
        super().__init__(1, monitor=True, clock=lambda: self.now)
        for vmpl, vmsa in ((1, SERVICES_VMSA), (3, KERNEL_VMSA)):
            self.host.vcpus[0].set_vmsa(vmpl, vmsa).ghcb = GHCB
        self.host.vcpus[0].start(0)
        self.pulse_ns, self.pulses, self.kernel_ns = pulse_ns, 0, 0
        self.machine.script(VMSA, self._ask_for(1))
        self.machine.script(SERVICES_VMSA, *[self._serve] * 1000)
        self.machine.script(KERNEL_VMSA, *[self._compute] * 100_000)

    @staticmethod
    def _ask_for(vmpl: int) -> Step:
        def step(vmcb: Vmcb) -> None:
            vmcb.ghcb_gpa = vmpl << 32 | 0x016

        return step

    def _serve(self, vmcb: Vmcb) -> None:
        self.pulses += 1
        self.now += self.pulse_ns
        vmcb.ghcb_gpa = RUN_KERNEL

    def _compute(self, vmcb: Vmcb) -> int:
        """Until the host's deadline, 10 ms at most; nothing if it is over."""
        ran = max(0, min(10 * MS, self.machine.deadlines[-1] - self.now))
        self.kernel_ns += ran
        self.now += ran
        return ExitCode.INTR


@pytest.mark.parametrize("pulse_ns", [MS, PULSE_NS // 2, PULSE_NS, 3 * PULSE_NS])
def test_the_kernel_has_a_second_between_two_pulses(pulse_ns: int) -> None:
    guest = Pulsed(pulse_ns)
    guest.host.run(until=lambda: guest.pulses >= 10)
    assert guest.kernel_ns >= 8 * PULSE_NS
