# SPDX-License-Identifier: GPL-2.0-or-later
"""A debugger's breakpoints and watchpoints stop the guest where they should, and the guest does not see them."""

from __future__ import annotations

import pytest

from tests.machine_code import assemble
from tests.small_guest import CODE, FREE, PAGE, STACK, TRAPS, SmallGuest
from veil.snp import MAX_WATCHPOINTS, DebugStop, ExitCode, SnpError, StopReason, WatchKind, Watchpoint

_LOOP = f"""
    mov ecx, 5
    mov rdi, {FREE}
again:
    add rax, rcx
    mov [rdi + 8 * rcx], rax
    dec ecx
    jnz again
    hlt
"""
#: behind the two moves
_AGAIN = CODE + 5 + len(assemble(f"mov rdi, {FREE}", CODE))


def _stop(guest: SmallGuest) -> DebugStop | None:
    assert guest.run() == ExitCode.INTR
    return guest.machine.debug_stop()


def _step(guest: SmallGuest) -> None:
    guest.machine.set_single_step(True)
    assert guest.run() == ExitCode.INTR
    stop = guest.machine.debug_stop()
    assert stop is not None
    assert stop.reason == StopReason.STEP
    guest.machine.set_single_step(False)


def test_a_breakpoint_stops_in_front_of_its_instruction() -> None:
    with SmallGuest(_LOOP) as guest:
        guest.machine.set_breakpoints([_AGAIN])
        for left in range(5, 0, -1):
            assert _stop(guest) == (StopReason.BREAKPOINT, 0)
            assert (guest.vmsa().rip, guest.vmsa().rcx) == (_AGAIN, left)
            assert guest.machine.debug_stop() is None, "asked once"
            _step(guest)
        assert guest.run() == ExitCode.HLT
        assert guest.machine.debug_stop() is None
        assert (guest.vmsa().rax, guest.trap().times) == (15, 0)


def test_breakpoints_can_be_set_and_taken_back_in_code_that_has_run() -> None:
    with SmallGuest(f"{_LOOP}\njmp {CODE}") as guest:
        for _ in range(3):
            assert guest.run() == ExitCode.HLT
            guest.machine.set_breakpoints([_AGAIN])
            assert _stop(guest) == (StopReason.BREAKPOINT, 0)
            guest.machine.set_breakpoints([])


def test_the_guest_reads_its_own_code_as_it_was() -> None:
    with SmallGuest(f"mov rbx, [{_AGAIN}]\n{_LOOP}") as guest:
        code = guest.top.read_u64(_AGAIN)
        guest.machine.set_breakpoints([_AGAIN, CODE + 8])
        while guest.run() != ExitCode.HLT:
            _step(guest)
        assert guest.vmsa().rbx == code == guest.top.read_u64(_AGAIN)


@pytest.mark.parametrize("vmpl", [0, 1, 2, 3])
def test_at_every_level(vmpl: int) -> None:
    with SmallGuest(_LOOP, vmpl=vmpl) as guest:
        guest.machine.set_breakpoints([_AGAIN])
        assert _stop(guest) == (StopReason.BREAKPOINT, 0)


def test_a_watchpoint_stops_in_front_of_the_store() -> None:
    with SmallGuest(_LOOP) as guest:
        guest.machine.set_watchpoints([Watchpoint(FREE + 24, 8, WatchKind.WRITE)])
        assert _stop(guest) == (StopReason.WATCHPOINT, FREE + 24)
        assert (guest.vmsa().rcx, guest.top.read_u64(FREE + 24)) == (3, 0)
        _step(guest)
        assert guest.top.read_u64(FREE + 24) == 12
        assert guest.run() == ExitCode.HLT


@pytest.mark.parametrize(
    ("code", "kind", "stops"),
    [
        ("mov rax, [rdi]", WatchKind.READ, True),
        ("mov rax, [rdi]", WatchKind.WRITE, False),
        ("mov [rdi], rax", WatchKind.READ, False),
        ("inc qword ptr [rdi]", WatchKind.READ, True),
        ("inc qword ptr [rdi]", WatchKind.WRITE, True),
        ("lock inc qword ptr [rdi]", WatchKind.WRITE, True),
        ("mov rax, [rdi - 1]", WatchKind.READ, True),
        ("mov [rdi + 1], rax", WatchKind.WRITE, True),
        ("mov [rdi + 2], rax", WatchKind.WRITE, False),
        ("mov [rdi - 8], rax", WatchKind.WRITE, False),
        ("movups [rdi - 15], xmm0", WatchKind.WRITE, True),
        ("mov ecx, 3\nrep stosb", WatchKind.WRITE, True),
    ],
)
def test_watched_accesses(code: str, kind: WatchKind, stops: bool) -> None:
    with SmallGuest(f"mov rdi, {FREE + 64}\n{code}\nhlt") as guest:
        assert guest.run() == ExitCode.HLT
        guest.put(f"jmp {CODE}", guest.vmsa().rip)
        guest.machine.set_watchpoints([Watchpoint(FREE + 64, 2, kind | kind)])
        if stops:
            assert _stop(guest) == (StopReason.WATCHPOINT, FREE + 64)
            guest.machine.set_watchpoints([])
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == 0


def test_the_other_accesses_of_a_watched_page_are_as_ever() -> None:
    with SmallGuest(_LOOP) as guest:
        guest.machine.set_watchpoints([Watchpoint(FREE + PAGE - 1, 1, WatchKind.READ | WatchKind.WRITE)])
        assert guest.run() == ExitCode.HLT
        assert [guest.top.read_u64(FREE + 8 * index) for index in range(1, 6)] == [15, 14, 12, 9, 5]


def test_an_event_whose_frame_is_watched_is_delivered_afterwards() -> None:
    with SmallGuest("int 0x20\nhlt") as guest:
        guest.machine.set_watchpoints([Watchpoint(STACK - 8, 8, WatchKind.WRITE)])
        assert _stop(guest) == (StopReason.WATCHPOINT, STACK - 8)
        guest.vmcb.event_inj = guest.vmcb.exit_int_info
        assert guest.vmcb.event_inj
        _step(guest)
        assert guest.run() == ExitCode.HLT
        assert guest.trap()[::3] == (0x20, 1)


def test_stores_to_code_are_seen_where_both_are_set() -> None:
    patch = f"mov byte ptr [{_AGAIN}], 0x90\nmov byte ptr [{_AGAIN + 1}], 0x90\nmov byte ptr [{_AGAIN + 2}], 0x90\n"
    with SmallGuest(f"{_LOOP}\n{patch}xor eax, eax\njmp {CODE}") as guest:
        assert guest.run() == ExitCode.HLT
        guest.machine.set_watchpoints(
            [Watchpoint(_AGAIN + 64, 1, WatchKind.WRITE), Watchpoint(TRAPS, 8, WatchKind.READ)]
        )
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rax == 0, "the addition is gone"


def test_at_most_so_many() -> None:
    with SmallGuest() as guest:
        with pytest.raises(SnpError):
            guest.machine.set_watchpoints([Watchpoint(FREE, 1, WatchKind.READ)] * (MAX_WATCHPOINTS + 1))
        with pytest.raises(SnpError):
            guest.machine.set_watchpoints([Watchpoint(FREE, 0, WatchKind.READ)])
