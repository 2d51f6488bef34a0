# SPDX-License-Identifier: GPL-2.0-or-later
"""The GHCB MSR protocol, request by request."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.fakes import GHCB, MEMORY, PAGE, VMSA, Guest
from veil.host import GuestTerminated, HostError, RunState

PFN_ONES = (1 << 52) - 1 << 12


def test_sev_info() -> None:
    assert Guest().call_msr(0x002) == 2 << 48 | 1 << 32 | 51 << 24 | 1


def test_cpuid_registers() -> None:
    guest = Guest(cpuid=[(1, 0, 0xA, 0x00BB0000, 0xC, 0xD)], apic_ids=[7])
    values = [guest.call_msr(1 << 32 | register << 30 | 0x004) for register in range(4)]
    assert [value >> 32 for value in values] == [0xA, 0x07BB0000, 0xC, 0xD]
    assert [value & 0xC0000FFF for value in values] == [register << 30 | 5 for register in range(4)]


def test_cpuid_says_whether_the_apic_is_on() -> None:
    guest = Guest(cpuid=[(1, 0, 0xA, 0xB, 0xC, 1 << 9 | 1)])
    assert guest.call_msr(1 << 32 | 3 << 30 | 0x004) >> 32 == 1 << 9 | 1
    guest.platform.apics_off.add(0)
    assert guest.call_msr(1 << 32 | 3 << 30 | 0x004) >> 32 == 1


def test_unknown_cpuid_leaf_is_zero() -> None:
    assert Guest().call_msr(0x4000_0000 << 32 | 0x004) == 0x005


def test_preferred_gpa_is_none() -> None:
    assert Guest().call_msr(0x010) == PFN_ONES | 0x011


def test_register_gpa() -> None:
    guest = Guest()
    assert guest.call_msr(0x7000 | 0x012) == 0x7013
    assert guest.host.vcpus[0].contexts[0].ghcb == 0x7000


def test_no_page_is_registered_any_more() -> None:
    guest = Guest()
    assert guest.call_msr(0x012) == 0x013
    assert guest.host.vcpus[0].contexts[0].ghcb is None


@pytest.mark.parametrize("gpa", [MEMORY, 1 << 51])
def test_register_gpa_refused(gpa: int) -> None:
    guest = Guest()
    assert guest.call_msr(gpa | 0x012) == PFN_ONES | 0x013
    assert guest.host.vcpus[0].contexts[0].ghcb == GHCB


def test_page_state_change() -> None:
    guest = Guest()
    assert guest.call_msr(2 << 52 | 0x9000 | 0x014) == 0x015
    assert guest.view.is_shared(0x9000)
    assert guest.call_msr(1 << 52 | 0x9000 | 0x014) == 0x015
    assert not guest.view.is_shared(0x9000)


def test_page_state_change_splits_a_large_page() -> None:
    guest = Guest()
    guest.view.large.add(512)
    assert guest.call_msr(2 << 52 | 0x20_3000 | 0x014) == 0x015
    assert guest.view.is_shared(0x20_3000)
    assert not guest.view.is_shared(0x20_2000)
    assert ("psmash", 0x20_0000) in guest.view.log


def test_private_page_stays_validated() -> None:
    guest = Guest()
    assert guest.call_msr(1 << 52 | 0x9000 | 0x014) == 0x015
    assert guest.view.log == []


@pytest.mark.parametrize(
    "request_value", [0x9000, 3 << 52 | 0x9000, 1 << 56 | 2 << 52 | 0x9000, 2 << 52 | MEMORY, 2 << 52 | 0xF_FFFF_F000]
)
def test_page_state_change_refused(request_value: int) -> None:
    guest = Guest()
    assert guest.call_msr(request_value | 0x014) == 1 << 32 | 0x015
    assert guest.view.log == []


def test_run_vmpl() -> None:
    guest = Guest(monitor=True)
    vcpu = guest.host.vcpus[0]
    vcpu.set_vmsa(3, 0x2000)
    assert guest.call_msr(3 << 32 | 0x016) == 0x017
    assert vcpu.vmpl == 3


@pytest.mark.parametrize("request_value", [2 << 32, 4 << 32, 0xFF << 32, 1 << 40, 1 << 12, 3 << 32 | 1 << 31])
def test_run_vmpl_refused(request_value: int) -> None:
    guest = Guest(monitor=True)
    guest.host.vcpus[0].set_vmsa(3, 0x2000)
    assert guest.call_msr(request_value | 0x016) == 1 << 32 | 0x017
    assert guest.host.vcpus[0].vmpl == 0


def test_features() -> None:
    assert Guest().call_msr(0x080) == (1 | 2 | 16 | 32) << 12 | 0x081


def test_ap_reset_hold_and_sipi() -> None:
    guest = Guest()
    assert guest.call_msr(0x006) == 0x007
    states = [guest.host.vcpus[0].state]
    guest.host.sipi(0)
    states.append(guest.host.vcpus[0].state)
    assert states == [RunState.WAIT_SIPI, RunState.RUNNABLE]
    assert guest.host.vcpus[0].contexts[0].vmcb.ghcb_gpa == 0x1007


@pytest.mark.parametrize(
    ("reason_set", "code", "words"),
    [
        (0, 2, "features"),
        (1, 3, "VMPL 0"),
        (1, 11, "calling area"),
        (15, 9, "SVSM"),
        (1, 0xEE, "does not define"),
        (7, 0, "private to the guest"),
    ],
)
def test_terminate(reason_set: int, code: int, words: str) -> None:
    with pytest.raises(GuestTerminated, match=words) as caught:
        Guest().call_msr(code << 16 | reason_set << 12 | 0x100)
    assert (caught.value.reason_set, caught.value.code) == (reason_set, code)
    assert "VCPU 0, VMPL 0" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_request_is_left_alone() -> None:
    guest = Guest()
    assert guest.call_msr(0x1234_5FED) == 0x1234_5FED
    assert guest.host.counters()["msr unknown"] == 1


@given(st.integers(0, (1 << 64) - 1), st.integers(1, 0xFFF))
def test_any_value(value: int, info: int) -> None:
    """No exception but the typed ones, and nothing written to what the guest owns."""
    guest = Guest(monitor=True)
    guest.host.vcpus[0].set_vmsa(3, 0x2000)
    before = bytes(guest.view.memory)
    with contextlib.suppress(HostError):
        guest.call_msr(value & ~0xFFF | info)
    assert bytes(guest.view.memory) == before


@given(st.integers(0, 0xFFFFF), st.sampled_from([2, 4, 6, 0x10, 0x12, 0x14, 0x16, 0x80, 0x100]), st.integers(0, 0xFFF))
def test_known_requests_with_hostile_operands(middle: int, info: int, high: int) -> None:
    guest = Guest(monitor=True)
    guest.host.vcpus[0].set_vmsa(3, 0x2000)
    try:
        answer = guest.call_msr(high << 52 | middle << 12 | info)
    except GuestTerminated:
        return
    assert answer & 1
    assert guest.view.private[VMSA // PAGE] or info == 0x14
