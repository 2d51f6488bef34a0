# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's events on tracks: one for each VCPU, and below it one for each of its VMPLs.

On a VMPL's track `runs` is a slice while the level is its VCPU's; while it waits for another level that it asked for
something, a slice has the name of that. Exits, requests of the GHCB protocol and page state changes are instants of the
level that made them, switches of VMPL instants of the VCPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.cvm.trace.file import now_ns
from veil.formats.domains import VMPLS
from veil.formats.ghcb import MSR_INFO_MASK, MsrRequest, NaeEvent
from veil.host import (
    ApCreationEvent,
    Event,
    ExitEvent,
    GhcbEvent,
    GhcbMsrEvent,
    PageStateEvent,
    VmplEntryEvent,
    VmplSwitchEvent,
)
from veil.snp import ExitCode

if TYPE_CHECKING:
    import enum

    from veil.cvm.trace.asked import Asked
    from veil.cvm.trace.file import TraceFile

__all__ = ["Tracks"]

_U64 = (1 << 64) - 1
#: of tracks that a VCPU has
_NUMBERS = 1 + VMPLS


class Tracks:
    """Writes what an observer of a host sees (`Hypervisor.on_event`)."""

    def __init__(self, file: TraceFile, asked: Asked, first: int = 1) -> None:
        """`first`: the lowest number that no track has yet."""
        self._first = first
        self._file = file
        self._asked = asked
        self._declared: set[int] = set()
        #: the level that runs, by VCPU
        self._current: dict[int, int] = {}
        #: (VCPU, level) that wait, each with the category of what it asked for
        self._waiting: dict[tuple[int, int], str] = {}

    def see(self, event: Event) -> None:
        """An event of the host."""
        now = now_ns()
        vcpu, vmpl = event.vcpu, event.vmpl
        match event:
            case ExitEvent():
                self._run(now, vcpu, vmpl)
                name = _name(ExitCode, event.code, "exit")
                values = {"code": event.code, "exit_info_1": event.exit_info_1, "exit_info_2": event.exit_info_2}
                self._file.instant(now, self._level(vcpu, vmpl), "exit", name, **values)
            case VmplSwitchEvent() | VmplEntryEvent():
                self._switch(now, event)
            case GhcbMsrEvent():
                code = event.request & MSR_INFO_MASK
                name = "MSR " + _name(MsrRequest, code, "request")
                track = self._level(vcpu, vmpl)
                self._file.instant(now, track, "ghcb", name, request=event.request, response=event.response)
            case GhcbEvent():
                self._ghcb(now, event)
            case PageStateEvent():
                name = "page private" if event.private else "page shared"
                self._file.instant(now, self._level(vcpu, vmpl), "page_state", name, gpa=event.gpa, size=event.size)
            case ApCreationEvent():
                name = "VMSA taken away" if event.vmsa is None else "VMSA registered"
                values = {"target_vcpu": event.target_vcpu, "target_vmpl": event.target_vmpl, "vmsa": event.vmsa or 0}
                self._file.instant(now, self._level(vcpu, vmpl), "vmsa", name, **values)

    def _ghcb(self, now: int, event: GhcbEvent) -> None:
        self._file.instant(
            now,
            self._level(event.vcpu, event.vmpl),
            "ghcb",
            "GHCB " + _name(NaeEvent, event.exit_code, "request"),
            exit_code=event.exit_code & _U64,
            exit_info_1=event.exit_info_1 & _U64,
            exit_info_2=event.exit_info_2 & _U64,
            result1=event.result1 & _U64,
            result2=event.result2 & _U64,
        )

    def _run(self, now: int, vcpu: int, vmpl: int) -> None:
        """This level ran: it may be that nobody asked for it (a start, the host)."""
        if self._current.get(vcpu) != vmpl:
            self._leave(now, vcpu)
            self._enter(now, vcpu, vmpl)

    def _switch(self, now: int, event: VmplSwitchEvent | VmplEntryEvent) -> None:
        vcpu, vmpl, target = event.vcpu, event.vmpl, event.target
        requested = isinstance(event, VmplSwitchEvent)
        self._run(now, vcpu, vmpl)
        category, name = ("switch", f"VMPL {vmpl} to {target}")
        if not requested:
            category, name = "entry", f"host: VMPL {vmpl} to {target}"
        self._file.instant(now, self._vcpu(vcpu), category, name, source=vmpl, target=target)
        request = self._asked.request(vcpu, vmpl, target) if requested else None
        self._leave(now, vcpu)
        if request is not None and (vcpu, vmpl) not in self._waiting:
            self._file.begin(now, self._level(vcpu, vmpl), request.category, request.name, **request.values)
            self._waiting[vcpu, vmpl] = request.category
        self._enter(now, vcpu, target)

    def _leave(self, now: int, vcpu: int) -> None:
        left = self._current.pop(vcpu, None)
        if left is not None:
            self._file.end(now, self._level(vcpu, left))

    def _enter(self, now: int, vcpu: int, vmpl: int) -> None:
        track = self._level(vcpu, vmpl)
        category = self._waiting.pop((vcpu, vmpl), None)
        if category is not None:
            result = self._asked.result(vcpu) if category == "svsm" else None
            self._file.end(now, track, **({} if result is None else {"rax": result}))
        self._file.begin(now, track, "vmpl", "runs")
        self._current[vcpu] = vmpl

    def _vcpu(self, vcpu: int) -> int:
        track = self._first + _NUMBERS * vcpu
        if track not in self._declared:
            self._declared.add(track)
            self._file.track(track, f"VCPU {vcpu}", rank=vcpu)
        return track

    def _level(self, vcpu: int, vmpl: int) -> int:
        track = self._first + _NUMBERS * vcpu + 1 + vmpl
        if track not in self._declared:
            parent = self._vcpu(vcpu)
            self._declared.add(track)
            self._file.track(track, f"VMPL {vmpl}", parent=parent, rank=vmpl)
        return track


def _name(kind: type[enum.IntEnum], code: int, unknown: str) -> str:
    """Only known codes have a name: a guest must not fill the table of names with them."""
    try:
        return kind(code).name
    except ValueError:
        return unknown
