# SPDX-License-Identifier: GPL-2.0-or-later
"""A monitor of machine code at VMPL 0 injects events into VMPL 3, through the fields of its VMSA; the host would like
to do so in its place."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from veil.bare_metal import FREE, BareGuest, Context, Exit, ExitCode, Host, assemble
from veil.snp.layouts import (
    EVENT_VALID,
    V_BUSY,
    V_IGN_TPR,
    V_INTR_PRIO_SHIFT,
    V_INTR_VECTOR_SHIFT,
    V_IRQ,
    V_NMI,
    V_NMI_ENABLE,
    SevFeatures,
    Vmsa,
    VmsaSegment,
)

_IDT, _HANDLERS, _LOG, _GUEST = (FREE + 0x1000 * page for page in range(4))
_NMI, _INJECTED, _OFFERED, _GIVEN_BACK, _LAST = 2, 0x21, 0x32, 0x23, 0x24
_HOSTS_INJECTED, _HOSTS_OFFERED = 0x2E, 0x2F
_VMGEXIT = ".byte 0xf3, 0x0f, 0x01, 0xd9"
_RMPADJUST = ".byte 0xf3, 0x0f, 0x01, 0xfe"
_ON_OFFER = V_IRQ | _OFFERED >> 4 << V_INTR_PRIO_SHIFT | _OFFERED << V_INTR_VECTOR_SHIFT

_COMMON = f"""
.macro go_to vmpl
    mov ecx, 0xC0010130
    mov eax, 0x16
    mov edx, \\vmpl
    wrmsr
    {_VMGEXIT}
.endm
"""
#: It asks for nothing, and counts with interrupts on.
_PROGRAM = f"{_COMMON} sti\n1: go_to 0\njmp 1b"


def _field(name: str) -> str:
    return f"[r15 + {getattr(Vmsa, name).offset:#x}]"


def _set(name: str, value: int) -> str:
    return f"mov rax, {value:#x}\nmov {_field(name)}, rax\n"


def _monitor(vmsa: int, features: int) -> str:
    permit = f"mov rax, {_IDT:#x}\nxor ecx, ecx\nmov edx, {{:#x}}\n{_RMPADJUST}\n"
    return f"""{_COMMON}
    mov r15, {vmsa:#x}
    {_set("sev_features", features)}
    {_set("event_inj", EVENT_VALID | _INJECTED)}
    go_to 3
    {_set("vintr_ctrl", _ON_OFFER)}
    go_to 3
    {_set("vintr_ctrl", V_NMI_ENABLE | V_NMI)}
    go_to 3
    {permit.format(3)}
    {_set("event_inj", EVENT_VALID | _GIVEN_BACK)}
    go_to 3
    mov r14, {_field("exit_int_info")}
    mov r13, {_field("vintr_ctrl")}
    {permit.format(0xF03)}
    mov {_field("event_inj")}, r14
    btr qword ptr {_field("vintr_ctrl")}, {V_BUSY.bit_length() - 1}
    go_to 3
    {_set("event_inj", EVENT_VALID | _LAST)}
    go_to 3
    hlt
"""


class _Eager(Host):
    """Injects and offers at each VMRUN of VMPL 3, and has it go on after a nested page fault as if it were nothing."""

    def exit(self, guest: BareGuest, exit: Exit) -> Context | None:
        context = guest.context(0) if exit.code == ExitCode.BUSY else super().exit(guest, exit)
        if exit.code == ExitCode.NPF:
            again = guest.exits[-2].code == ExitCode.NPF
            context = guest.context(0) if again else exit.context
        if context is not None and context.vmpl == 3:
            context.vmcb.event_inj = EVENT_VALID | _HOSTS_INJECTED
            context.vmcb.v_intr = V_IRQ | V_IGN_TPR | _HOSTS_OFFERED << V_INTR_VECTOR_SHIFT
        return context


class _Honest(Host):
    """Has VMPL 0 run when the other one is not to go on."""

    def exit(self, guest: BareGuest, exit: Exit) -> Context | None:
        if exit.code in (ExitCode.NPF, ExitCode.BUSY):
            return guest.context(0)
        return super().exit(guest, exit)


@contextmanager
def _guest(host: Host, features: int) -> Iterator[BareGuest]:
    with BareGuest(host=host) as guest:
        context = guest.add_context(3, rip=_GUEST)
        guest.put(0x10000, assemble(_monitor(context.vmsa, features)))
        guest.put(_GUEST, assemble(_PROGRAM, _GUEST))
        guest.put(_LOG, struct.pack("<Q", _LOG + 8))
        for vector in range(64):
            handler = _HANDLERS + 64 * vector
            log = f"push rax\nmov rax, [{_LOG:#x}]\nmov byte ptr [rax], {vector}\ninc qword ptr [{_LOG:#x}]\npop rax"
            guest.put(handler, assemble(f"{log}\niretq", handler))
            gate = struct.pack("<HHBBHII", handler & 0xFFFF, 0x08, 0, 0x8E, handler >> 16, 0, 0)
            guest.put(_IDT + 16 * vector, gate)
        context.registers.idtr = VmsaSegment(0, 0, 0x3FF, _IDT)
        guest.permit(0, 3, pages=1024)
        yield guest


def _log(guest: BareGuest) -> list[int]:
    view = guest.view(0)
    return list(view.read(_LOG + 8, view.read_u64(_LOG) - _LOG - 8))


@pytest.mark.parametrize("host", [_Honest(), _Eager()], ids=["honest", "eager"])
def test_what_the_monitor_injects_is_all_that_comes(host: Host) -> None:
    with _guest(host, int(SevFeatures.SNP | SevFeatures.ALTERNATE_INJECTION)) as guest:
        exit = guest.run()
        assert (exit.code, exit.context.vmpl) == (ExitCode.HLT, 0)
        assert _log(guest) == [_INJECTED, _OFFERED, _NMI, _GIVEN_BACK, _LAST]
        registers = guest.context(0).registers
        assert registers.r14 == EVENT_VALID | _GIVEN_BACK
        assert registers.r13 & V_BUSY
        busy = [exit.code for exit in guest.exits].count(ExitCode.BUSY)
        assert busy == (1 if isinstance(host, _Eager) else 0), "it is refused until the event is given back"


def test_without_the_feature_it_is_the_hosts_that_comes() -> None:
    with _guest(_Eager(), int(SevFeatures.SNP)) as guest:
        assert guest.run().code == ExitCode.HLT
        assert set(_log(guest)) == {_HOSTS_INJECTED, _HOSTS_OFFERED}
