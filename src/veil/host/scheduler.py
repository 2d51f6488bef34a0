# SPDX-License-Identifier: GPL-2.0-or-later
"""Which VCPU runs next, and for how long: in turn, but at once if an interrupt was just sent to it.

A machine with one core runs them one after the other. VCPUs that wait for each other (for an interrupt between
processors, for a lock) would waste whole slices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.host.vcpu import RunState

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.host.host import Host
    from veil.host.vcpu import Context, Vcpu

__all__ = ["LONG_SLICE_NS", "MAX_PAUSES", "SLICE_NS", "Scheduler"]

#: How long a VCPU may run while another one could.
SLICE_NS = 1_000_000
#: How long a VCPU runs without the host looking around.
LONG_SLICE_NS = 50_000_000
#: PAUSEs in a slice before the next VCPU gets its turn; few, because nobody else runs meanwhile.
MAX_PAUSES = 16


class Scheduler:
    """Whose turn it is among the VCPUs of one host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        #: the VCPU whose turn is next, as far as none is preferred
        self.turn = 0
        self._preferred: Vcpu | None = None

    def prefer(self, vcpu: Vcpu) -> None:
        """Let it run next, if it can."""
        self._preferred = vcpu

    def prefer_next(self, chosen: Callable[[Vcpu], bool]) -> None:
        """The next of these that can run, in their order, is preferred."""
        vcpus = self._host.vcpus
        in_turn = (*vcpus[self.turn :], *vcpus[: self.turn])
        self._preferred = next((vcpu for vcpu in in_turn if chosen(vcpu) and self.can_run(vcpu)), None)

    def is_due(self, vcpu: Vcpu) -> bool:
        """Is there an interrupt for its kernel, or an NMI that it would take?"""
        host = self._host
        vector = host.platform.pending_vector(vcpu.index)
        if vector is not None and not self._holds_back(vcpu, vector):
            return True
        return self._has_nmi(vcpu) or self._has_own(vcpu.current)

    def _has_own(self, context: Context | None) -> bool:
        """Did the same level of another VCPU send it something, past the APICs?"""
        if context is None:
            return False
        return context.own_vectors != 0 or (context.doorbell is not None and context.has_nmi)

    def _holds_back(self, vcpu: Vcpu, vector: int) -> bool:
        """Is it below the kernel's CR8? (#HV comes all the same.)"""
        kernel = vcpu.contexts.get(self._host.kernel_vmpl)
        if kernel is None or kernel.doorbell is not None or vector >> 4 > kernel.cr8:
            return False
        return not self._host.platform.passes_priorities(vcpu.index)

    def _has_nmi(self, vcpu: Vcpu) -> bool:
        kernel = vcpu.contexts.get(self._host.kernel_vmpl)
        return kernel is not None and kernel.has_nmi

    def can_run(self, vcpu: Vcpu) -> bool:
        """Is there something for it to do now?"""
        state = vcpu.state
        if state == RunState.RUNNABLE:
            return True
        if state != RunState.HALTED:
            return False
        context = vcpu.current
        assert context is not None  # a VCPU without a VMSA is parked or was never started
        # Levels other than the guest's get no interrupts; that there is one may be why they should stop waiting.
        # And #HV comes whatever RFLAGS.IF says.
        if context.interrupts_enabled or context.doorbell is not None or context.vmpl != self._host.kernel_vmpl:
            return self.is_due(vcpu)
        return self._has_nmi(vcpu)

    def can_another_run(self, vcpu: Vcpu) -> bool:
        """Can one run that is not this one?"""
        return any(self.can_run(other) for other in self._host.vcpus if other is not vcpu)

    @property
    def idle(self) -> bool:
        """Does every VCPU wait for something to come? At this moment; a timer's tick is enough to change it."""
        return not any(self.can_run(vcpu) for vcpu in self._host.vcpus)

    @property
    def hung(self) -> bool:
        """Can no VCPU ever run again?"""
        return all(self._is_dead(vcpu) for vcpu in self._host.vcpus)

    def _is_dead(self, vcpu: Vcpu) -> bool:
        if vcpu.state != RunState.HALTED or vcpu.current is None:
            return vcpu.state != RunState.RUNNABLE
        current = vcpu.current
        return current.vmpl == self._host.kernel_vmpl and not current.interrupts_enabled and current.doorbell is None

    def choose(self) -> Vcpu | None:
        """The VCPU that runs now; None: none can."""
        vcpus = self._host.vcpus
        preferred, self._preferred = self._preferred, None
        if preferred is not None and self.can_run(preferred):
            chosen = preferred
        else:
            count = len(vcpus)
            for step in range(count):
                chosen = vcpus[(self.turn + step) % count]
                if self.can_run(chosen):
                    break
            else:
                return None
        self.turn = (chosen.index + 1) % len(vcpus)
        chosen.state = RunState.RUNNABLE
        return chosen

    def signalled(self, vcpu: Vcpu) -> bool:
        """After a device access of this one: does it interrupt another VCPU? Then that one runs at once.

        Senders of interrupts between processors wait for their effect, on a machine where only one runs at a time.
        """
        for other in self._host.vcpus:
            if other is not vcpu and self.is_due(other) and self.can_run(other):
                self._preferred = other
                return True
        return False
