# SPDX-License-Identifier: GPL-2.0-or-later
"""NMIs, injected or waiting in the VMCB: one at a time until IRET (APM volume 2, 8.2.3, 15.20, 15.21.10)."""

from __future__ import annotations

import pytest

from tests.small_guest import CODE, IDT, PAGE, STACK, VMSA, SmallGuest
from veil.snp import ExitCode, Permission
from veil.snp.layouts import EVENT_NMI, EVENT_VALID, V_IGN_TPR, V_IRQ, V_NMI, V_NMI_ENABLE, V_NMI_MASK

_NMI = 2
_INTERRUPT = V_IRQ | V_IGN_TPR | 0x21 << 32
_INJECTED = EVENT_VALID | EVENT_NMI
#: NMI virtualization, and offsets in the VMSA
_ENABLED, _RFLAGS, _SEV_FEATURES = V_NMI_ENABLE, 0x170, 0x3B0


def _without_if(guest: SmallGuest) -> SmallGuest:
    guest.top.write_u64(VMSA + _RFLAGS, 2)
    return guest


def _took(guest: SmallGuest, times: int) -> None:
    assert guest.run() == ExitCode.HLT
    assert (guest.trap().vector if times else None, guest.trap().times) == (_NMI if times else None, times)


@pytest.mark.parametrize("vector", [0, _NMI, 0x30])
def test_injected_whatever_if_and_vector_say(vector: int) -> None:
    with _without_if(SmallGuest("nop\nhlt")) as guest:
        guest.vmcb.event_inj = _INJECTED | vector
        _took(guest, 1)
        assert guest.vmcb.v_intr & V_NMI_MASK == 0  # nobody asked for it to be kept


def test_one_that_waits_is_taken_without_if_and_once() -> None:
    with _without_if(SmallGuest("nop\nhlt")) as guest:
        guest.vmcb.v_intr = _ENABLED | V_NMI
        _took(guest, 1)
        assert guest.vmcb.v_intr == _ENABLED | V_NMI_MASK


def test_without_nmi_virtualization_none_waits() -> None:
    with SmallGuest("nop\nhlt") as guest:
        guest.vmcb.v_intr = V_NMI | V_NMI_MASK
        _took(guest, 0)
        assert guest.vmcb.v_intr == V_NMI | V_NMI_MASK


def test_the_next_one_waits_for_iret() -> None:
    """IRET of a handler of something else counts as well."""
    with _without_if(SmallGuest("mov rbx, 1\nint 0x31\nmov rbx, 2\nhlt")) as guest:
        guest.put("mov rbx, 3\niretq", at=_own_handler(guest, 0x31))
        guest.vmcb.v_intr = _ENABLED | V_NMI | V_NMI_MASK
        _took(guest, 1)
        assert guest.vmsa().rbx == 3
        assert guest.vmcb.v_intr == _ENABLED | V_NMI_MASK


def _own_handler(guest: SmallGuest, vector: int) -> int:
    handler = 0x3F000
    gate = int.from_bytes(guest.top.read(IDT + 16 * vector, 16), "little")
    gate &= ~(0xFFFF | 0xFFFF << 48)
    guest.top.write(IDT + 16 * vector, (gate | handler & 0xFFFF | handler >> 16 << 48).to_bytes(16, "little"))
    return handler


def test_an_injected_one_keeps_the_next_one_waiting() -> None:
    with SmallGuest("nop\nhlt") as guest:
        guest.put("inc rbx\ncmp rbx, 5\njae 1f\niretq\n1: hlt", at=_own_handler(guest, _NMI))
        guest.top.write_u64(VMSA + 0x318, 3)
        guest.vmcb.v_intr, guest.vmcb.event_inj = _ENABLED | V_NMI, _INJECTED
        guest.machine.set_single_step(True)
        seen = []
        while guest.run() == ExitCode.INTR:
            seen.append((guest.vmsa().rbx, bool(guest.vmcb.v_intr & V_NMI), bool(guest.vmcb.v_intr & V_NMI_MASK)))
        assert seen == [
            (3, True, True), (4, True, True), (4, True, True), (4, True, True), (4, True, False),
            (4, False, True), (5, False, True), (5, False, True), (5, False, True),
        ]  # fmt: skip


def test_it_goes_before_an_interrupt() -> None:
    with SmallGuest("nop\nhlt") as guest:
        guest.vmcb.v_intr = _ENABLED | V_NMI | _INTERRUPT
        _took(guest, 1)
        assert guest.vmcb.v_intr & V_IRQ  # the gate has cleared IF


def test_an_interrupt_waits_for_no_nmi() -> None:
    with SmallGuest("nop\nhlt") as guest:
        guest.vmcb.v_intr = _ENABLED | V_NMI | V_NMI_MASK | _INTERRUPT
        assert guest.run() == ExitCode.HLT
        assert guest.trap().vector == 0x21
        assert guest.vmcb.v_intr & (V_NMI | V_NMI_MASK) == V_NMI | V_NMI_MASK


@pytest.mark.parametrize("shadow", ["sti", "mov ss, ax"])
def test_the_shadow_keeps_it_out_for_one_instruction(shadow: str) -> None:
    with _without_if(SmallGuest(f"mov eax, 0x10\n{shadow}\nmov rbx, 2\nmov rbx, 3\nhlt")) as guest:
        guest.machine.set_single_step(True)
        assert guest.run() == guest.run() == ExitCode.INTR
        guest.machine.set_single_step(False)
        guest.vmcb.v_intr |= _ENABLED | V_NMI
        _took(guest, 1)
        assert guest.vmsa().rbx == 2


@pytest.mark.parametrize("waits", [True, False], ids=["an NMI", "none"])
def test_it_ends_hlt(waits: bool) -> None:
    """In the shadow of STI it waits for HLT, and HLT must not wait for it."""
    with _without_if(SmallGuest("sti\nhlt\nmov rbx, 7\nhlt")) as guest:
        guest.put("iretq", at=_own_handler(guest, _NMI))
        guest.machine.set_single_step(True)
        assert guest.run() == ExitCode.INTR
        guest.machine.set_single_step(False)
        guest.vmcb.v_intr |= _ENABLED | (V_NMI if waits else 0)
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rbx == (7 if waits else 0)
        assert guest.vmcb.v_intr == _ENABLED


@pytest.mark.parametrize("way", ["injected", "waiting"])
@pytest.mark.parametrize("barrier", [IDT, STACK - PAGE], ids=["IDT", "stack"])
def test_delivery_that_meets_a_nested_page_fault_is_repeated(way: str, barrier: int) -> None:
    with SmallGuest("nop\nhlt") as guest:
        guest.vmcb.v_intr = _ENABLED | (V_NMI if way == "waiting" else 0)
        guest.vmcb.event_inj = 0 if way == "waiting" else _INJECTED
        guest.permit(barrier, Permission.NONE)
        assert guest.run() == ExitCode.NPF
        assert guest.vmcb.exit_int_info == _INJECTED | _NMI
        assert guest.trap().times == 0
        guest.permit(barrier, Permission.ALL)
        guest.vmcb.event_inj = guest.vmcb.exit_int_info
        _took(guest, 1)
        assert guest.vmcb.v_intr == _ENABLED | V_NMI_MASK


def test_each_context_has_its_own() -> None:
    with SmallGuest("nop\nhlt") as guest:
        other = guest.make_context(VMSA + PAGE, vmpl=3)
        guest.vmcb.v_intr = other.v_intr = _ENABLED
        guest.vmcb.v_intr |= V_NMI
        _took(guest, 1)
        assert guest.run(other) == ExitCode.HLT
        assert (guest.vmcb.v_intr, other.v_intr) == (_ENABLED | V_NMI_MASK, _ENABLED)


def test_restricted_injection_keeps_it_out() -> None:
    with SmallGuest("nop\nhlt") as guest:
        guest.top.write_u64(VMSA + _SEV_FEATURES, 1 | 1 << 3)
        guest.vmcb.v_intr = _ENABLED | V_NMI | _INTERRUPT
        _took(guest, 0)
        assert guest.vmsa().rip == CODE + 2  # HLT waits, whatever the host offers
        assert guest.vmcb.v_intr == _ENABLED | V_NMI | _INTERRUPT
        guest.vmcb.event_inj = _INJECTED
        assert guest.run() == ExitCode.INVALID
