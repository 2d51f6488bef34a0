# SPDX-License-Identifier: GPL-2.0-or-later
"""Alternate injection (APM volume 2, 15.36.16): events are those that VMPL 0 writes into the VMSA; the host's count for
nothing. Each is tried without the feature too, where it is the other way round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_guest import CODE, FREE, IDT, PAGE, STACK, TRAPS, VMSA, SmallGuest, Trap
from veil.snp import ExitCode, Permission
from veil.snp.layouts import (
    EVENT_ERROR_CODE,
    EVENT_EXCEPTION,
    EVENT_NMI,
    EVENT_VALID,
    GUEST_INTERRUPT_MASK,
    V_BUSY,
    V_IGN_TPR,
    V_INT_SHADOW,
    V_IRQ,
    V_NMI,
    V_NMI_ENABLE,
    V_NMI_MASK,
    SevFeatures,
    Vmsa,
)

_PLAIN = SevFeatures.SNP
_ALTERNATE = SevFeatures.SNP | SevFeatures.ALTERNATE_INJECTION
_SOFTWARE = 4 << 8
_GP, _NMI, _OURS, _HOSTS = 13, 2, 0x21, 0x2F
_OFFER = V_IRQ | V_IGN_TPR
#: where a copy of a VMSA is that has not run
_PRISTINE = FREE


def _set(guest: SmallGuest, **fields: int) -> None:
    """As VMPL 0 does, which made the VMSA."""
    for name, value in fields.items():
        guest.top.write_u64(VMSA + getattr(Vmsa, name).offset, value)


def _alternate(code: str, **fields: int) -> SmallGuest:
    guest = SmallGuest(code)
    _set(guest, sev_features=int(_ALTERNATE), **fields)
    return guest


def _taken(guest: SmallGuest) -> int | None:
    """The one event that was taken, if any."""
    trap = guest.trap()
    assert trap.times <= 1
    return trap.vector if trap.times else None


@pytest.mark.parametrize(
    ("event", "vector", "error_code"),
    [
        (EVENT_VALID | _OURS, _OURS, 0),
        (EVENT_VALID | EVENT_NMI, _NMI, 0),
        (EVENT_VALID | EVENT_EXCEPTION | 6, 6, 0),
        (EVENT_VALID | EVENT_EXCEPTION | EVENT_ERROR_CODE | _GP | 0x1234 << 32, _GP, 0x1234),
        (EVENT_VALID | _SOFTWARE | 0x30, 0x30, 0),
    ],
    ids=["interrupt", "NMI", "#UD", "#GP", "software interrupt"],
)
def test_eventinj_is_the_vmsas(event: int, vector: int, error_code: int) -> None:
    with _alternate("nop\nnop\nhlt", event_inj=event, nrip=CODE + 1) as guest:
        guest.vmcb.event_inj, guest.vmcb.nrip = EVENT_VALID | _HOSTS, CODE + 2
        assert guest.run() == ExitCode.HLT
        assert (_taken(guest), guest.trap().error_code) == (vector, error_code)
        assert guest.trap().rip == CODE + (1 if event & 0x700 == _SOFTWARE else 0)
        assert guest.vmsa().event_inj == guest.vmcb.event_inj == 0
        assert not guest.vmsa().vintr_ctrl & V_BUSY


def test_without_the_feature_it_is_the_hosts() -> None:
    with SmallGuest("nop\nnop\nhlt") as guest:
        _set(guest, event_inj=EVENT_VALID | _OURS, vintr_ctrl=_OFFER | _OURS << 32)
        guest.vmcb.event_inj = EVENT_VALID | _HOSTS
        assert guest.run() == ExitCode.HLT
        assert _taken(guest) == _HOSTS
        assert (guest.vmsa().event_inj, guest.vmsa().vintr_ctrl) == (EVENT_VALID | _OURS, _OFFER | _OURS << 32)


@pytest.mark.parametrize("alternate", [True, False], ids=["alternate", "plain"])
def test_interrupts_on_offer_are_the_vmsas(alternate: bool) -> None:
    ours, hosts = V_IRQ | 2 << 16 | _OURS << 32, _OFFER | _HOSTS << 32
    with _alternate("nop\nmov rbx, 1\nhlt", vintr_ctrl=ours) as guest:
        guest.vmcb.v_intr = hosts
        if not alternate:
            _set(guest, sev_features=int(_PLAIN))
        assert guest.run() == ExitCode.HLT
        assert (_taken(guest), guest.vmsa().rbx) == (_OURS if alternate else _HOSTS, 0)
        # What was taken is not on offer any more; the other one's is as it was.
        assert guest.vmsa().vintr_ctrl == ours & ~(V_IRQ if alternate else 0)
        assert guest.vmcb.v_intr == hosts & ~(0 if alternate else V_IRQ)


@pytest.mark.parametrize("flags", [2, 0x202], ids=["IF clear", "IF set"])
def test_the_host_offers_in_vain(flags: int) -> None:
    """Whatever it is, and HLT does not end by it."""
    offer = V_NMI_ENABLE | V_NMI | _OFFER | _HOSTS << 32
    with _alternate("nop\nhlt\nmov rbx, 1\nhlt", rflags=flags) as guest:
        guest.vmcb.v_intr, guest.vmcb.event_inj = offer, EVENT_VALID | EVENT_EXCEPTION | 6
        assert guest.run() == ExitCode.HLT
        assert _taken(guest) is None
        assert (guest.vmsa().rip, guest.vmsa().rbx) == (CODE + 2, 0)
        assert guest.vmcb.v_intr == offer
        # It still hears of RFLAGS.IF.
        assert guest.vmcb.interrupt_shadow == (GUEST_INTERRUPT_MASK if flags & 0x200 else 0)


def test_one_on_offer_ends_hlt() -> None:
    """In the shadow of STI it waits for HLT, and HLT must not wait for it."""
    with _alternate("sti\nhlt\nmov rbx, 1\nhlt", rflags=2, vintr_ctrl=V_IRQ | 2 << 16 | _OURS << 32) as guest:
        assert guest.run() == ExitCode.HLT
        assert (_taken(guest), guest.trap().rip) == (_OURS, CODE + 2)


def test_cr8_is_the_vmsas_v_tpr() -> None:
    code = "mov rbx, cr8\nmov eax, 1\nmov cr8, rax\nnop\nmov ecx, 1\nhlt"
    with _alternate(code, vintr_ctrl=V_IRQ | 2 << 16 | _OURS << 32 | 5) as guest:
        guest.vmcb.v_intr = 9
        assert guest.run() == ExitCode.HLT
        assert (guest.vmsa().rbx, guest.vmsa().rcx, _taken(guest)) == (5, 0, _OURS)
        assert guest.vmsa().vintr_ctrl & 0xFF == 1
        assert guest.vmcb.v_intr == 9, "the host neither says nor learns it"


@pytest.mark.parametrize("shadow", ["sti", "mov ss, ax"])
def test_the_interrupt_shadow_is_the_vmsas(shadow: str) -> None:
    """A host that could end it would have an interrupt come between STI and HLT."""
    with _alternate(f"mov eax, 0x10\n{shadow}\nmov rbx, 2\nmov rbx, 3\nhlt") as guest:
        guest.machine.set_single_step(True)
        assert guest.run() == guest.run() == ExitCode.INTR
        guest.machine.set_single_step(False)
        assert guest.vmsa().vintr_ctrl == V_INT_SHADOW
        assert guest.vmcb.interrupt_shadow == GUEST_INTERRUPT_MASK
        _set(guest, vintr_ctrl=V_INT_SHADOW | _OFFER | _OURS << 32)
        assert guest.run() == ExitCode.HLT
        assert (_taken(guest), guest.vmsa().rbx) == (_OURS, 2)
        assert not guest.vmsa().vintr_ctrl & V_INT_SHADOW


@pytest.mark.parametrize("shadow", [0, V_INT_SHADOW])
def test_the_host_makes_no_shadow(shadow: int) -> None:
    with _alternate("mov rbx, 2\nmov rbx, 3\nhlt", vintr_ctrl=shadow | _OFFER | _OURS << 32) as guest:
        guest.vmcb.interrupt_shadow = 0 if shadow else 1
        assert guest.run() == ExitCode.HLT
        assert (_taken(guest), guest.vmsa().rbx) == (_OURS, 2 if shadow else 0)


def test_nmis_wait_for_iret() -> None:
    with _alternate("nop\nhlt", rflags=2, vintr_ctrl=V_NMI_ENABLE | V_NMI) as guest:
        assert guest.run() == ExitCode.HLT
        assert _taken(guest) == _NMI
        assert guest.vmsa().vintr_ctrl == V_NMI_ENABLE | V_NMI_MASK
        _set(guest, vintr_ctrl=V_NMI_ENABLE | V_NMI_MASK | V_NMI)
        assert guest.run() == ExitCode.HLT  # the handler's IRET, and then it
        assert guest.trap().times == 2
        assert guest.vmsa().vintr_ctrl == V_NMI_ENABLE | V_NMI_MASK


@pytest.mark.parametrize("barrier", [IDT, STACK - PAGE], ids=["IDT", "stack"])
@pytest.mark.parametrize("way", ["EVENTINJ", "V_IRQ", "its own #UD"])
def test_an_event_that_is_cut_off_is_vmpl_0s_to_give_back(way: str, barrier: int) -> None:
    """The host cannot have the context go on without it."""
    event = EVENT_VALID | (EVENT_EXCEPTION | 6 if way == "its own #UD" else _OURS)
    with _alternate("ud2" if way == "its own #UD" else "nop\nhlt") as guest:
        if way == "EVENTINJ":
            _set(guest, event_inj=event)
        elif way == "V_IRQ":
            _set(guest, vintr_ctrl=_OFFER | _OURS << 32)
        guest.permit(barrier, Permission.NONE)
        assert guest.run() == ExitCode.NPF
        assert guest.vmsa().exit_int_info == event
        assert guest.vmsa().vintr_ctrl & V_BUSY
        guest.permit(barrier, Permission.ALL)
        for injected in (0, EVENT_VALID | _HOSTS):
            guest.vmcb.event_inj = injected
            assert guest.run() == ExitCode.BUSY
            assert guest.vmcb.exit_int_info == guest.vmcb.exit_info_1 == guest.vmcb.exit_info_2 == 0
        assert _taken(guest) is None
        _set(guest, event_inj=guest.vmsa().exit_int_info, vintr_ctrl=guest.vmsa().vintr_ctrl & ~V_BUSY)
        assert guest.run() == ExitCode.HLT
        assert _taken(guest) == event & 0xFF


def test_busy_keeps_every_context_with_the_feature_out() -> None:
    with _alternate("hlt", vintr_ctrl=V_BUSY) as guest:
        assert guest.run() == ExitCode.BUSY
        assert (guest.vmsa().rip, guest.vmsa().vintr_ctrl) == (CODE, V_BUSY)
        _set(guest, sev_features=int(_PLAIN))
        assert guest.run() == ExitCode.HLT


@pytest.mark.parametrize(
    ("event", "vector", "still"),
    [
        (EVENT_VALID | EVENT_EXCEPTION | EVENT_ERROR_CODE | _GP | 7 << 32, _GP, True),
        (EVENT_VALID | _SOFTWARE | 0x30, 0x30, True),
        (EVENT_VALID | _OURS, _OURS, False),
        (EVENT_VALID | EVENT_NMI, _NMI, False),
    ],
    ids=["#GP", "software interrupt", "interrupt", "NMI"],
)
def test_a_host_whose_time_is_up_cuts_nothing_off(event: int, vector: int, still: bool) -> None:
    """In front of a delivery EVENTINJ is as it was; and no context is BUSY for a timer of the host's."""
    with _alternate("hlt", event_inj=event, nrip=CODE + 1) as guest:
        assert guest.run(deadline_ns=1) == ExitCode.INTR
        assert guest.vmsa().event_inj == (event if still else 0)
        assert guest.vmsa().exit_int_info == guest.vmcb.exit_int_info == 0
        assert not guest.vmsa().vintr_ctrl & V_BUSY
        assert guest.run() == ExitCode.HLT
        assert _taken(guest) == vector


@pytest.mark.parametrize("event", [1 << 8 | 0x21, 7 << 8, EVENT_EXCEPTION | 2, EVENT_EXCEPTION | 32])
def test_what_is_no_event(event: int) -> None:
    """As in the VMCB (APM volume 2, 15.20)."""
    with _alternate("nop\nhlt", event_inj=EVENT_VALID | event) as guest:
        assert guest.run() == ExitCode.INVALID
        _set(guest, event_inj=event)
        guest.vmcb.event_inj = EVENT_VALID | event
        assert guest.run() == ExitCode.HLT
        assert _taken(guest) is None


def test_there_is_one_injection() -> None:
    with _alternate("hlt") as guest:
        _set(guest, sev_features=int(_ALTERNATE | SevFeatures.RESTRICTED_INJECTION))
        assert guest.run() == ExitCode.INVALID


def test_sev_status_tells_of_it() -> None:
    with _alternate("mov ecx, 0xc0010131\nrdmsr\nhlt") as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.vmsa().rax == 3 | int(_ALTERNATE) << 2


class _Outcome(NamedTuple):
    exit_code: ExitCode
    trap: Trap
    rip: int
    rflags: int
    on_offer: int
    shadow: bool


def _outcome(
    guest: SmallGuest, pristine: bytes, features: int, event: int, v_intr: int, shadow: bool, **fields: int
) -> _Outcome:
    """Of a context with these events: in the VMSA, or in the VMCB, as `features` say."""
    guest.top.write(VMSA, pristine)
    guest.top.write(TRAPS, bytes(32))
    alternate = bool(features & SevFeatures.ALTERNATE_INJECTION)
    vmcb = guest.vmcb
    vmcb.event_inj, vmcb.v_intr, vmcb.interrupt_shadow, vmcb.nrip = event, v_intr, int(shadow), CODE + 1
    if alternate:
        vmcb.event_inj = vmcb.v_intr = vmcb.interrupt_shadow = vmcb.nrip = 0
        _set(guest, event_inj=event, vintr_ctrl=v_intr | (V_INT_SHADOW if shadow else 0), nrip=CODE + 1)
    _set(guest, sev_features=features, **fields)
    code = guest.run()
    vmsa = guest.vmsa()
    on_offer = vmsa.vintr_ctrl & ~V_INT_SHADOW if alternate else vmcb.v_intr
    shadowed = vmsa.vintr_ctrl & V_INT_SHADOW if alternate else vmcb.interrupt_shadow & 1
    return _Outcome(code, guest.trap(), vmsa.rip, vmsa.rflags, on_offer, code != ExitCode.INVALID and bool(shadowed))


@pytest.fixture(scope="module")
def stepped() -> Iterator[SmallGuest]:
    with SmallGuest("nop\nmov rax, 3\nmov cr8, rax\nsti\nnop\nhlt") as guest:
        guest.top.write(_PRISTINE, guest.top.read(VMSA, PAGE))
        yield guest


_OFFERS = st.sets(st.sampled_from([V_IRQ, V_IGN_TPR, V_NMI, V_NMI_MASK, V_NMI_ENABLE])).map(sum)
_EVENTS = st.tuples(
    st.sampled_from([0, EVENT_VALID]), st.integers(0, 7), st.sampled_from([0, EVENT_ERROR_CODE]), st.integers(0, 255)
)


@settings(max_examples=150, deadline=None)
@given(
    event=_EVENTS,
    offers=_OFFERS,
    priority=st.integers(0, 15),
    vector=st.integers(0, 255),
    tpr=st.integers(0, 15),
    shadow=st.booleans(),
    enabled=st.booleans(),
)
def test_the_vmsas_fields_do_what_the_vmcbs_do(
    stepped: SmallGuest,
    event: tuple[int, int, int, int],
    offers: int,
    priority: int,
    vector: int,
    tpr: int,
    shadow: bool,
    enabled: bool,
) -> None:
    valid, kind, error, of_event = event
    pristine = bytes(stepped.vmsa(_PRISTINE))
    injection = valid | kind << 8 | error | of_event
    v_intr = offers | priority << 16 | vector << 32 | tpr
    first, second = (
        _outcome(stepped, pristine, int(features), injection, v_intr, shadow, rflags=0x202 if enabled else 2)
        for features in (_PLAIN, _ALTERNATE)
    )
    assert first == second
