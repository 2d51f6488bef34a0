# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's record of one VCPU: which VMSA it may run at which VMPL, at which it is now, and whether it may run.

A VCPU has one VMCB for each VMPL that it has a VMSA for (56421, "Multiple VMPLs"): the GHCB MSR, pending events and
interrupts of one level are no business of another.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

from veil.host.doorbell import HV_EVENT, Doorbell
from veil.host.errors import HostError
from veil.snp.layouts import (
    EVENT_ERROR_CODE,
    EVENT_EXCEPTION,
    EVENT_VALID,
    GUEST_INTERRUPT_MASK,
    V_IGN_TPR,
    V_INTR_PRIO_SHIFT,
    V_INTR_VECTOR_SHIFT,
    V_IRQ,
    V_NMI,
    V_NMI_ENABLE,
    V_NMI_MASK,
    V_TPR,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.host.interfaces import HostMemory

__all__ = ["NO_IRQ", "Context", "Hold", "RunState", "Vcpu"]


#: No interrupt is offered.
NO_IRQ = -1

_V_INTR_MASK = ~(V_IRQ | V_IGN_TPR | 0xF << 16 | 0xFF << V_INTR_VECTOR_SHIFT) & (1 << 64) - 1

_VECTOR_BYTES = 32


def exception_event(vector: int, error_code: int | None = None) -> int:
    """The EVENTINJ encoding of an exception."""
    event = EVENT_VALID | EVENT_EXCEPTION | vector
    if error_code is not None:
        event |= EVENT_ERROR_CODE | error_code << 32
    return event


class RunState(enum.IntEnum):
    """Why a VCPU runs or does not."""

    RUNNABLE = 0
    #: HLT: until an interrupt
    HALTED = 1
    #: AP reset hold, or never started: until SIPI or AP creation
    WAIT_SIPI = 2
    #: its VMSA was taken away: until AP creation
    PARKED = 3


class Hold(enum.IntEnum):
    """How a context asked for AP reset hold, which decides where the answer goes."""

    NONE = 0
    MSR = 1
    NAE = 2


class Context:
    """One VMSA of a VCPU with its VMCB."""

    __slots__ = (
        "doorbell", "ghcb", "handed_on", "hold", "irq", "on_init", "own_vectors", "refused", "restricted", "vmcb",
        "vmpl",
    )  # fmt: skip

    #: it runs in the kernel's place, and may be left for the kernel at any instruction
    is_enclave = False

    def __init__(self, vmpl: int, vmcb: Any, vmsa: int) -> None:
        self.vmpl = vmpl
        self.vmcb = vmcb
        vmcb.vmsa_pa = vmsa
        vmcb.v_intr |= V_NMI_ENABLE
        #: the registered GHCB, None before registration
        self.ghcb: int | None = None
        #: its VMSA has restricted injection: the CPU takes #HV, and no other event
        self.restricted = False
        self.doorbell: Doorbell | None = None
        #: a bit for each vector that the same level of another VCPU sent, past the APICs
        self.own_vectors = 0
        #: the vector offered by V_IRQ, or by the doorbell page, that the CPU has not been seen to take, or NO_IRQ
        self.irq = NO_IRQ
        #: the VMSA waits for an INIT (AP_CREATE_ON_INIT)
        self.on_init = False
        self.hold = Hold.NONE
        #: GPA and EXITINFO1 of the nested page fault that VMPL 0 is to decide before this context runs again
        self.handed_on: tuple[int, int] | None = None
        #: the same from then on that VMPL 0 had the context run: if VMRUN refuses it now, it was not to go on
        self.refused: tuple[int, int] | None = None

    def offer_interrupt(self, vector: int, *, passes: bool = False) -> None:
        """Let the CPU take this vector as soon as the guest allows it; `passes`: whatever CR8 is."""
        self.irq = vector
        if self.doorbell is not None:
            self.doorbell.post(self.vmcb, vector, end=True)
            return
        vmcb = self.vmcb
        priority = V_IGN_TPR if passes else vector >> 4 << V_INTR_PRIO_SHIFT
        vmcb.v_intr = vmcb.v_intr & _V_INTR_MASK | V_IRQ | priority | vector << V_INTR_VECTOR_SHIFT

    @property
    def cr8(self) -> int:
        """What the guest's interrupts must be above."""
        return int(self.vmcb.v_intr & V_TPR)

    @cr8.setter
    def cr8(self, value: int) -> None:
        self.vmcb.v_intr = self.vmcb.v_intr & ~V_TPR | value

    def withdraw_interrupt(self) -> None:
        """The interrupt went away before the CPU took it."""
        if self.doorbell is not None:
            self.doorbell.withdraw(self.irq)
        self.vmcb.v_intr &= _V_INTR_MASK
        self.irq = NO_IRQ

    def interrupt_taken(self) -> bool:
        """Did the CPU, or the guest from its doorbell page, take the offered interrupt?"""
        if self.vmcb.v_intr & V_IRQ if self.doorbell is None else self.doorbell.vector:
            return False
        self.irq = NO_IRQ
        return True

    def set_doorbell(self, view: HostMemory, gpa: int) -> None:
        """From now on interrupts and NMIs are told of by this page and #HV."""
        self.clear_doorbell()
        self.doorbell = Doorbell(view, gpa)

    def clear_doorbell(self) -> None:
        """The guest has no such page (any more)."""
        if self.irq != NO_IRQ:
            self.withdraw_interrupt()
        self.doorbell = None

    def ring(self) -> None:
        """Before a VMRUN of a context with a doorbell page: what came for it, and not from the APIC."""
        doorbell = self.doorbell
        assert doorbell is not None
        if self.vmcb.v_intr & V_NMI:
            self.vmcb.v_intr &= ~V_NMI
            doorbell.post_nmi(self.vmcb)
        if self.own_vectors and not doorbell.vector:
            vector = self.own_vectors.bit_length() - 1
            self.own_vectors &= ~(1 << vector)
            doorbell.post(self.vmcb, vector, end=False)

    def offer_nmi(self) -> None:
        """Let the CPU take an NMI, whatever RFLAGS.IF says, as soon as the guest has no other one in hand."""
        self.vmcb.v_intr |= V_NMI

    @property
    def has_nmi(self) -> bool:
        """Would the CPU take an NMI now?"""
        return bool(self.vmcb.v_intr & (V_NMI | V_NMI_MASK) == V_NMI)

    def keep_event(self) -> None:
        """An exit cut off an event's delivery: the next VMRUN must repeat it (APM volume 2, 15.20).

        With restricted injection only #HV can be given back. Another event's instruction raises it again.
        """
        event = self.vmcb.exit_int_info
        if event & EVENT_VALID and (not self.restricted or event == HV_EVENT):
            self.vmcb.event_inj = event

    @property
    def interrupts_enabled(self) -> bool:
        """RFLAGS.IF at the last exit."""
        return bool(self.vmcb.interrupt_shadow & GUEST_INTERRUPT_MASK)

    def dump(self) -> dict[str, Any]:
        vmcb = self.vmcb
        return {
            "vmpl": self.vmpl,
            "vmsa": vmcb.vmsa_pa,
            "ghcb_msr": vmcb.ghcb_gpa,
            "v_intr": vmcb.v_intr,
            "interrupt_shadow": vmcb.interrupt_shadow,
            "event_inj": vmcb.event_inj,
            "nrip": vmcb.nrip,
            "ghcb": -1 if self.ghcb is None else self.ghcb,
            "irq": self.irq,
            "restricted": self.restricted,
            "doorbell": -1 if self.doorbell is None else self.doorbell.gpa,
            "own_vectors": self.own_vectors.to_bytes(_VECTOR_BYTES, "little"),
            "on_init": self.on_init,
            "hold": int(self.hold),
            "handed_on": list(self.handed_on or ()),
            "refused": list(self.refused or ()),
        }

    @classmethod
    def load(cls, state: dict[str, Any], new_vmcb: Callable[[], Any], view: HostMemory) -> Context:
        """From a snapshot."""
        context = cls(int(state["vmpl"]), new_vmcb(), int(state["vmsa"]))
        vmcb = context.vmcb
        vmcb.ghcb_gpa = state["ghcb_msr"]
        vmcb.v_intr = state["v_intr"]
        vmcb.interrupt_shadow = state["interrupt_shadow"]
        vmcb.event_inj = state["event_inj"]
        vmcb.nrip = state["nrip"]
        context.ghcb = None if state["ghcb"] < 0 else int(state["ghcb"])
        context.irq = int(state["irq"])
        context.restricted = bool(state["restricted"])
        context.doorbell = None if state["doorbell"] < 0 else Doorbell(view, int(state["doorbell"]))
        context.own_vectors = int.from_bytes(state["own_vectors"][:_VECTOR_BYTES], "little")
        context.on_init = bool(state["on_init"])
        context.hold = Hold(state["hold"])
        context.handed_on, context.refused = _saved_fault(state["handed_on"]), _saved_fault(state["refused"])
        return context


def _saved_fault(saved: list[Any]) -> tuple[int, int] | None:
    if not saved:
        return None
    gpa, info = saved
    return int(gpa), int(info)


class Vcpu:
    """One VCPU."""

    __slots__ = ("_left", "_new_vmcb", "apic_id", "contexts", "current", "index", "state")

    def __init__(self, index: int, apic_id: int, new_vmcb: Callable[[], Any]) -> None:
        self.index = index
        self.apic_id = apic_id
        self._new_vmcb = new_vmcb
        self.contexts: dict[int, Context] = {}
        #: what levels had whose VMSA was taken away, for their next one
        self._left: dict[int, Context] = {}
        #: the context that runs when the VCPU runs
        self.current: Context | None = None
        self.state = RunState.WAIT_SIPI

    @property
    def vmpl(self) -> int | None:
        """The current VMPL; None before there is a VMSA."""
        return None if self.current is None else self.current.vmpl

    def is_busy_above(self, vmpl: int) -> bool:
        """Does a level more privileged than this one run on it, which is not to be left in the middle?"""
        running = self.state in (RunState.RUNNABLE, RunState.HALTED)
        current = self.current
        return running and current is not None and current.vmpl < vmpl and not current.is_enclave

    def set_vmsa(self, vmpl: int, vmsa: int) -> Context:
        """A new VMSA for a level, replacing what the level has, or had.

        The VMCB stays and with it the GHCB MSR, and the registered GHCB stays: both belong to the VCPU, not the VMSA.
        edk2 takes a VMSA away and gives another one, and its processor goes on with its GHCB.
        """
        left = self._left.pop(vmpl, None)
        old = self.contexts.get(vmpl, left)
        if old is None:
            context = Context(vmpl, self._new_vmcb(), vmsa)
        else:
            context = Context(vmpl, old.vmcb, vmsa)
            context.vmcb.event_inj = context.vmcb.interrupt_shadow = 0
            context.vmcb.v_intr = V_NMI_ENABLE
            context.ghcb = old.ghcb
        self.contexts[vmpl] = context
        if (old is not None and self.current is old) or self._runs_enclave_of(vmpl):
            self.current = context
        return context

    def _runs_enclave_of(self, vmpl: int) -> bool:
        """Does an enclave's context run in this level's place?"""
        return self.current is not None and self.current.is_enclave and self.current.vmpl < vmpl

    def drop_vmsa(self, vmpl: int) -> None:
        """The level's VMSA is gone; a VCPU that was running it has nothing to run."""
        context = self.contexts.pop(vmpl, None)
        if context is not None:
            self._left[vmpl] = context
        if context is not None and (self.current is context or self._runs_enclave_of(vmpl)):
            self.park()

    def park(self) -> None:
        """There is nothing to run."""
        self.current = None
        self.state = RunState.PARKED

    def start(self, vmpl: int) -> None:
        """Run this level's VMSA."""
        self.current = self.contexts[vmpl]
        self.current.hold = Hold.NONE
        self.state = RunState.RUNNABLE

    def dump(self) -> dict[str, Any]:
        return {
            "apic_id": self.apic_id,
            "state": int(self.state),
            "current": -1 if self.current is None else self.current.vmpl,
            "enclave": self.current.vmcb.vmsa_pa if self.current is not None and self.current.is_enclave else -1,
            "contexts": [context.dump() for context in self.contexts.values()],
            "left": [context.dump() for context in self._left.values()],
        }

    def load(
        self,
        state: dict[str, Any],
        view: HostMemory,
        enclave: Callable[[int], Context | None] = lambda vmsa: None,
    ) -> None:
        """`view` is the host's; `enclave` finds a context of VMPL 2 by its VMSA."""
        try:
            contexts, left = (
                {int(entry["vmpl"]): Context.load(entry, self._new_vmcb, view) for entry in state[name]}
                for name in ("contexts", "left")
            )
            current = enclave(int(state["enclave"]))
            if current is None:
                current = contexts[state["current"]] if state["current"] >= 0 else None
            run_state = RunState(state["state"])
            apic_id = int(state["apic_id"])
        except (KeyError, TypeError, ValueError) as error:
            raise HostError(f"snapshot: the state of VCPU {self.index} is damaged ({error!r})") from error
        self._left = left
        self.contexts, self.current, self.state, self.apic_id = contexts, current, run_state, apic_id
