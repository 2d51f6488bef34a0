# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel and a host that attack together: the host has a VCPU wait in the middle of something, and kernel-mode code
on the other one works meanwhile."""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

import pytest

from tests.e2e.code_attacks.guests import CodeGuest
from veil.formats.domains import KERNEL_VMPL, MONITOR_VMPL, SERVICE_VMPL
from veil.host.hypervisor import Hypervisor
from veil.host.scheduler import Scheduler
from veil.host.vcpu import Context, Vcpu
from veil.snp.rmp import FAULT_SIZEM

__all__ = ["Accomplice", "HoldingHost", "Script"]

_T = TypeVar("_T")
#: Steps of an attack: each yield is a moment in which the accomplice runs.
Script: TypeAlias = Generator[None, None, _T]

_CPU = 1


class _What(enum.IntEnum):
    """enum what (attacker/accomplice.c)."""

    CALL = 0
    PUT = 1
    RUN = 2


_WORDS = struct.Struct("<5Q")
_ORDER, _WHAT, _DONE, _RESULT = 0, 8, 48, 56


class Accomplice:
    """Kernel-mode code on VCPU 1, which has mapped a page, writable and executable."""

    def __init__(self, guest: CodeGuest, frame: int) -> None:
        """`frame`: the page's GPA."""
        self._guest = guest
        self._view = guest.vm.machine.view(vmpl=3)
        self._desk = guest.number("page")
        self._orders = 0
        assert guest.attack("desk", self._desk, frame) is None

    def _order(self, what: _What, *words: int) -> Script[int]:
        self._orders += 1
        self._view.write(self._desk + _WHAT, _WORDS.pack(what, *words, *[0] * (4 - len(words))))
        self._view.write_u64(self._desk + _ORDER, self._orders)
        while self._view.read_u64(self._desk + _DONE) != self._orders:
            yield
        return self._view.read_u64(self._desk + _RESULT)

    def call(self, protocol: int, call: int, *registers: int) -> Script[int]:
        """VeilMon's result for a call of VCPU 1: RCX, RDX, R8."""
        return self._order(_What.CALL, protocol << 32 | call, *registers)

    def put(self) -> Script[int]:
        """The attacker's code goes into the page."""
        return self._order(_What.PUT)

    def run(self) -> Script[int]:
        """What is in the page is executed; what it returns."""
        return self._order(_What.RUN)

    def now(self, script: Script[int]) -> int:
        """Have something done while nobody is held up."""
        next(script)
        assert self._guest.attack("obey", cpu=_CPU) is None
        try:
            next(script)
        except StopIteration as stop:
            return int(stop.value)
        raise AssertionError("it was not done")


class HoldingHost:
    """A host that runs a VCPU on only when others have done something."""

    def __init__(self, patch: pytest.MonkeyPatch, host: Hypervisor) -> None:
        self._patch = patch
        self._host = host
        self._held: int | None = None
        self._script: Script[None] | None = None
        self._late: int | None = None
        can_run = Scheduler.can_run

        def may_run(scheduler: Scheduler, vcpu: Vcpu) -> bool:
            if vcpu.index == self._late or (vcpu.index == self._held and self._holds()):
                return False
            return can_run(scheduler, vcpu)

        patch.setattr(Scheduler, "can_run", may_run)

    def _holds(self) -> bool:
        assert self._script is not None
        try:
            next(self._script)
        except StopIteration:
            self._held = None
        return self._held is not None

    def _hold(self, vcpu: int, script: Script[None]) -> None:
        assert self._held is None
        self._held, self._script, self._late = vcpu, script, None
        self._host.reschedule = True

    def when_it_splits(self, script: Callable[[], Script[None]], *, if_: Callable[[], bool] = lambda: True) -> None:
        """The next time that VeilMon waits for the host to split an RMP entry, and `if_` holds; once."""

        def fault(vcpu: int, vmpl: int, gpa: int, info: int) -> bool:
            if vmpl == MONITOR_VMPL and info & FAULT_SIZEM and if_():
                self._patch.setattr(self._host, "on_npf", None)
                self._hold(vcpu, script())
            return False

        self._patch.setattr(self._host, "on_npf", fault)

    def when_it_answers_services(self, script: Callable[[], Script[None]]) -> None:
        """The next time that VeilMon has the services run; once."""
        self._when_switched(MONITOR_VMPL, SERVICE_VMPL, lambda vcpu: self._hold(vcpu, script()))

    def runs_only_meanwhile(self, vcpu: int) -> None:
        """This VCPU does nothing from when the next request is made of the services until another one is held up."""

        def stop(_: int) -> None:
            self._late = vcpu

        self._when_switched(KERNEL_VMPL, SERVICE_VMPL, stop)

    def _when_switched(self, before: int, after: int, then: Callable[[int], None]) -> None:
        switch = Hypervisor.switch_vmpl

        def switching(host: Hypervisor, vcpu: Vcpu, context: Context, vmpl: int) -> bool:
            if (context.vmpl, vmpl) == (before, after):
                self._patch.setattr(Hypervisor, "switch_vmpl", switch)
                then(vcpu.index)
            return switch(host, vcpu, context, vmpl)

        self._patch.setattr(Hypervisor, "switch_vmpl", switching)
