# SPDX-License-Identifier: GPL-2.0-or-later
"""Stops a machine and has it go on: a machine in front of the machine, whose VMRUN waits while gdb looks around.

All of it happens in the thread that runs the machine. Another one sees that gdb has said something while it runs, and
has it look (`attend`).
"""

from __future__ import annotations

import functools
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from veil.debugger.contexts import Context, read_vmsa
from veil.debugger.packets import ProtocolError
from veil.debugger.place import Place
from veil.debugger.session import Session
from veil.debugger.target import SIGINT, SIGSEGV, SIGTRAP, Left, Stop
from veil.snp import ExitCode, StopReason, Watchpoint
from veil.snp.layouts import EVENT_VALID, V_IRQ, V_NMI, SevFeatures

if TYPE_CHECKING:
    from collections.abc import Iterator

    from veil.snp import Machine
    from veil.snp.layouts import Vmcb

__all__ = ["Debugger"]

_INTR, _SHUTDOWN = int(ExitCode.INTR), int(ExitCode.SHUTDOWN)
_CHUNK = 0x10000
#: seconds that gdb may take nothing
_PATIENCE = 30.0
_MANY = 64


class Debugger:
    """One machine's. Give its host `machine` in place of the machine itself, and call `close` in the end."""

    def __init__(
        self,
        machine: Machine,
        contexts: Callable[[], Sequence[Context]],
        place: Place,
        *,
        wake: Callable[[Callable[[], None]], None] | None = None,
        waits: bool = False,
    ) -> None:
        """`contexts`: those that the host has now. `wake(action)` has the thread that runs the machine call an action
        soon, if it may be at something else than VMRUN. `waits`: nothing runs before gdb says so. Raises VeilError."""
        self.real = machine
        self.contexts = contexts
        #: whose VMRUN stops for gdb
        self.machine: Any = _Stoppable(self)
        #: that gdb set
        self.breakpoints: dict[int, str] = {}
        self.watchpoints: dict[Watchpoint, str] = {}
        #: what was left last, the newest at the end
        self.left: deque[Left] = deque(maxlen=_MANY)
        self.stopped: Stop | None = None
        self._place = place
        self._listener = place.listen()
        self._wake = wake
        self._waits = waits
        self._wanted = waits
        self._session: Session | None = None
        self._engine_breakpoints: Collection[int] = ()
        self._engine_watchpoints: Collection[Watchpoint] = ()
        #: VMSA of the context that executes one instruction and stops; VCPU that stops where it goes on
        self._step: int | None = None
        self._follow: int | None = None
        #: VMSA of the context that stands in front of a breakpoint and is to go on
        self._pass: int | None = None
        self._closed = False
        self._attended = threading.Event()
        #: for gdb's `target remote`
        self.address = Place.describe(self._listener)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def close(self) -> None:
        """The machine ends."""
        self._closed = True
        self._attended.set()
        if self._session is not None:
            self._session.exited()
            self._session.close()
            self._session = None
        self._place.close(self._listener)

    # While the machine runs

    def _watch(self) -> None:
        """Another thread: has the machine's thread look whenever there is something to read."""
        while not self._closed:
            session = self._session
            sockets: list[socket.socket] = [self._listener] if session is None else [self._listener, session.connection]
            try:
                ready, _, _ = select.select(sockets, (), (), 0.2)
            except (OSError, ValueError):
                continue  # one of them was closed meanwhile
            if not ready or self._closed:
                continue
            self._attended.clear()
            self._wanted = True
            if self._wake is not None:
                self._wake(self.attend)
            self.real.kick()
            self._attended.wait()

    def attend(self) -> None:
        """Look at what gdb says. For the thread that runs the machine, between two VMRUNs."""
        if not self._wanted:
            return
        self._wanted = False
        try:
            if self._waits:
                self._waits = False
                self._stand_still(Stop(SIGTRAP, self._any_context()))
            self._look(0)
            session = self._session
            if session is not None and session.wants_stop:
                self._stand_still(Stop(SIGINT, self._any_context()))
        finally:
            self._attended.set()

    def _any_context(self) -> Context | None:
        """The one that ran last, or would run."""
        known = list(self.contexts())
        last = self.left[-1].context if self.left else None
        for context in known:
            if last is not None and (context.vcpu, context.vmsa) == (last.vcpu, last.vmsa):
                return context
        return next((context for context in known if context.current), known[0] if known else None)

    def _look(self, timeout: float | None) -> None:
        """Take what is there: connections, and what gdb said."""
        session = self._session
        sockets = [self._listener] if session is None else [self._listener, session.connection]
        ready, _, _ = select.select(sockets, (), (), timeout)
        if session is not None and session.connection in ready:
            self._with(session, lambda: session.hear(session.connection.recv(_CHUNK)))
        if self._listener not in ready:
            return
        connection, _ = self._listener.accept()
        if self._session is not None:
            if self._session.begun:
                connection.close()
                return
            # Whoever says nothing keeps nobody out.
            self._session.close()
        connection.settimeout(_PATIENCE)
        self._session = Session(self, connection)

    # While it stands still

    def _stand_still(self, stop: Stop) -> None:
        """Until gdb has it go on, or goes away."""
        tsc = self.real.tsc()
        self.stopped = stop
        self._step = self._follow = self._pass = None
        try:
            session = self._session
            if session is not None and session.wants_reason:
                self._with(session, functools.partial(session.tell, stop))
            while self.stopped is not None:
                session = self._session
                if session is not None:
                    self._with(session, session.work)
                if self.stopped is not None:
                    self._look(None)
            session = self._session
            if session is not None and session.wants_stop:
                self._wanted = True
        finally:
            self.stopped = None
            # For the guest no time has passed: its watchdogs need not bark.
            self.real.set_tsc(tsc)

    def _with(self, session: Session, action: Callable[[], None]) -> None:
        try:
            action()
        except (OSError, ProtocolError):
            self.detach()

    def resume(self, step: Context | None = None) -> None:
        """Go on; `step`: this context stops behind its next instruction."""
        stop, self.stopped = self.stopped, None
        if step is not None and self.real.hosted_program(step.vmsa) is not None:
            # It is Python, and has no instructions: it has made its step when its VCPU is at one.
            self._follow, step = step.vcpu, None
        self._step = step.vmsa if step is not None else None
        if stop is not None and stop.context is not None:
            vmsa = stop.context.vmsa
            if read_vmsa(self.real, vmsa).rip in self.breakpoints and self._step != vmsa:
                self._pass = vmsa

    def detach(self) -> None:
        """gdb goes away, and the machine runs on as if it had never been there."""
        session, self._session = self._session, None
        if session is not None:
            session.close()
        self.breakpoints.clear()
        self.watchpoints.clear()
        self._arm()
        self.stopped = self._step = self._follow = self._pass = None

    # VMRUN

    def vmrun(self, vmcb: Vmcb, deadline_ns: int) -> None:
        """VMRUN of the real machine, and what gdb wants of it."""
        if self._wanted:
            self.attend()
        vmsa = vmcb.vmsa_pa
        if self._session is None or self.real.hosted_program(vmsa) is not None:
            self.real.vmrun(vmcb, deadline_ns)
            return
        context = self._context(vmsa)
        if context is not None and self._follow == context.vcpu:
            self._stand_still(Stop(SIGTRAP, context))
        while self._session is not None and self._run(vmcb, vmsa, deadline_ns, context):
            context = self._context(vmsa)
        if self._session is None:
            self.real.vmrun(vmcb, deadline_ns)
            return
        if context is not None and vmcb.exit_code != _INTR:
            self.left.append(Left(context, vmcb.exit_code))

    def _run(self, vmcb: Vmcb, vmsa: int, deadline_ns: int, context: Context | None) -> bool:
        """Once; was it for gdb that it came back?"""
        if self._step == vmsa:
            return self._run_step(vmcb, deadline_ns, context)
        if self._pass == vmsa:
            with self._single_step(vmcb):
                self.real.vmrun(vmcb, deadline_ns)
            stop = self.real.debug_stop()
            if stop is not None or vmcb.exit_code != _INTR:
                self._pass = None
            self._show_shutdown(vmcb, context)
            return stop is not None
        self._arm()
        self.real.vmrun(vmcb, deadline_ns)
        self._show_shutdown(vmcb, context)
        stop = self.real.debug_stop() if vmcb.exit_code == _INTR else None
        if stop is None:
            return False
        if stop.reason == StopReason.WATCHPOINT:
            # gdb wants it behind the access.
            self._keep_event(vmcb)
            with self._single_step(vmcb):
                self.real.vmrun(vmcb, 0)
            self._stand_still(Stop(SIGTRAP, context, self._watched(stop.address)))
            return self.real.debug_stop() is not None
        address = read_vmsa(self.real, vmsa).rip
        self._stand_still(Stop(SIGTRAP, context, f"{self.breakpoints.get(address, 'sw')}break:;"))
        return True

    def _run_step(self, vmcb: Vmcb, deadline_ns: int, context: Context | None) -> bool:
        with self._single_step(vmcb):
            self.real.vmrun(vmcb, deadline_ns)
        if vmcb.exit_code != _INTR:
            # The instruction left the guest: the step ends where its VCPU goes on, at whatever level.
            self._step = None
            self._follow = context.vcpu if context is not None else None
            self._show_shutdown(vmcb, context)
            return False
        stop = self.real.debug_stop()
        if stop is None:
            return False  # the host's time was up
        self._stand_still(Stop(SIGTRAP, context))
        return True

    def _show_shutdown(self, vmcb: Vmcb, context: Context | None) -> None:
        """A triple fault, before the host ends the guest for it."""
        if vmcb.exit_code == _SHUTDOWN:
            self._stand_still(Stop(SIGSEGV, context))

    @contextmanager
    def _single_step(self, vmcb: Vmcb) -> Iterator[None]:
        """Without interrupts: else each step would end in the handler of the timer, which goes on meanwhile."""
        waiting = vmcb.v_intr & (V_IRQ | V_NMI)
        vmcb.v_intr &= ~(V_IRQ | V_NMI)
        self.real.set_single_step(True)
        try:
            yield
        finally:
            self.real.set_single_step(False)
            vmcb.v_intr |= waiting

    def _keep_event(self, vmcb: Vmcb) -> None:
        """An access of an event's delivery is watched: the event is delivered again (APM volume 2, 15.20)."""
        restricted = read_vmsa(self.real, vmcb.vmsa_pa).sev_features & SevFeatures.RESTRICTED_INJECTION
        if vmcb.exit_int_info & EVENT_VALID and not restricted:
            vmcb.event_inj = vmcb.exit_int_info

    def _arm(self) -> None:
        """Each change costs the engine its translations: only before something runs, and only if there is one."""
        if self._engine_breakpoints != self.breakpoints.keys():
            self._engine_breakpoints = set(self.breakpoints)
            self.real.set_breakpoints(sorted(self._engine_breakpoints))
        if self._engine_watchpoints != self.watchpoints.keys():
            self._engine_watchpoints = set(self.watchpoints)
            self.real.set_watchpoints(sorted(self._engine_watchpoints))

    def _watched(self, address: int) -> str:
        names = [name for watchpoint, name in self.watchpoints.items() if watchpoint.address == address]
        return f"{names[0] if names else 'watch'}:{address:x};"

    def _context(self, vmsa: int) -> Context | None:
        found = [context for context in self.contexts() if context.vmsa == vmsa]
        return next((context for context in found if context.current), found[0] if found else None)


class _Stoppable:
    """What a host takes for the machine."""

    def __init__(self, debugger: Debugger) -> None:
        self._debugger = debugger
        self._real = debugger.real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def vmrun(self, vmcb: Vmcb, deadline_ns: int = 0) -> None:
        """VMRUN."""
        self._debugger.vmrun(vmcb, deadline_ns)

    def vmrun_switching(self, vmcb: Vmcb, policy: Any, deadline_ns: int = 0) -> int:
        """The same: each switch is the host's to do."""
        self._debugger.vmrun(vmcb, deadline_ns)
        return vmcb.vmsa_pa
