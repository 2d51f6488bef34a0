# SPDX-License-Identifier: GPL-2.0-or-later
"""Starting VCPUs and switching their VMPLs by GHCB page."""

from __future__ import annotations

import struct

import pytest

from tests.host.fakes import GHCB, MEMORY, OK, PAGE, SHARED, VMSA, Guest, malformed, three_vcpus
from veil.formats.ghcb import GhcbReason
from veil.host import RunState


def ap(apic_id: int, vmpl: int, request: int) -> int:
    return apic_id << 32 | vmpl << 16 | request


class TestApCreation:
    EVENT = 0x80000013

    def test_create_starts_another_vcpu(self) -> None:
        guest = three_vcpus()
        assert guest.call(self.EVENT, ap(1, 3, 1), 0x3000, rax=1) == OK
        vcpu = guest.host.vcpus[1]
        assert (vcpu.vmpl, vcpu.state, vcpu.contexts[3].vmcb.vmsa_pa) == (3, RunState.RUNNABLE, 0x3000)

    def test_monitor_registers_its_own_vcpus_guest(self) -> None:
        guest = Guest(monitor=True)
        assert guest.call(self.EVENT, ap(0, 3, 1), 0x3000, rax=1) == OK
        assert guest.host.vcpus[0].vmpl == 0
        assert guest.call(0x80000018, 3) == OK
        assert guest.host.vcpus[0].vmpl == 3

    def test_create_for_a_vcpu_that_serves(self) -> None:
        guest = three_vcpus()
        guest.host.vcpus[1].set_vmsa(0, 0x4000)
        guest.host.vcpus[1].start(0)
        assert guest.call(self.EVENT, ap(1, 3, 1), 0x3000, rax=1) == OK
        assert guest.host.vcpus[1].vmpl == 0
        assert set(guest.host.vcpus[1].contexts) == {0, 3}

    def test_create_wakes_a_level_above_that_has_halted(self) -> None:
        guest = Guest(2)
        other = guest.host.vcpus[1]
        other.set_vmsa(0, 0x30000)
        other.start(0)
        other.state = RunState.HALTED
        assert guest.call(self.EVENT, ap(1, 2, 1), 0x20000, rax=1) == OK
        assert (other.vmpl, other.state, set(other.contexts)) == (0, RunState.RUNNABLE, {0, 2})

    def test_without_veilmon_interrupts_go_to_the_least_privileged_level(self) -> None:
        """One that was on offer to the level above is withdrawn there; an enclave's level is a level like others."""
        guest = Guest()
        own = guest.host.vcpus[0].contexts[0]
        own.offer_interrupt(0x30)
        for vmpl, kernel in ((2, 2), (1, 2), (3, 3)):
            assert guest.call(self.EVENT, ap(0, vmpl, 1), 0x20000 + vmpl * PAGE, rax=1) == OK
            assert guest.host.kernel_vmpl == kernel
        assert own.irq == -1
        assert set(guest.host.vcpus[0].contexts) == {0, 1, 2, 3}
        assert not guest.host.enclaves
        under_veilmon = Guest(monitor=True)
        assert under_veilmon.call(self.EVENT, ap(0, 1, 1), 0x3000, rax=1) == OK
        assert under_veilmon.host.kernel_vmpl == 3

    def test_create_on_init(self) -> None:
        guest = three_vcpus()
        assert guest.call(self.EVENT, ap(1, 0, 0), 0x3000, rax=1) == OK
        vcpu = guest.host.vcpus[1]
        states = [vcpu.state]
        guest.host.sipi(1)
        states.append(vcpu.state)
        guest.host.init(1)
        assert [*states, vcpu.state] == [RunState.WAIT_SIPI, RunState.WAIT_SIPI, RunState.RUNNABLE]

    def test_create_on_init_of_a_level_below(self) -> None:
        """It waits for the monitor to run it, on this VCPU and on others; who made it goes on meanwhile."""
        guest = Guest(2)
        guest.host.vcpus[1].set_vmsa(0, 0x30000)
        guest.host.vcpus[1].start(0)
        for index, vcpu in enumerate(guest.host.vcpus):
            assert guest.call(self.EVENT, ap(index, 2, 0), 0x20000 + index * PAGE, rax=1) == OK
            assert (vcpu.vmpl, set(vcpu.contexts)) == (0, {0, 2})
            assert vcpu.state != RunState.WAIT_SIPI
        for vcpu in guest.host.vcpus:
            assert guest.host.switch_vmpl(vcpu, vcpu.contexts[0], 2)
            assert (vcpu.vmpl, vcpu.state) == (2, RunState.RUNNABLE)

    def test_destroy(self) -> None:
        guest = three_vcpus()
        guest.call(self.EVENT, ap(1, 3, 1), 0x3000, rax=1)
        assert guest.call(self.EVENT, ap(1, 3, 2)) == OK
        assert guest.host.vcpus[1].state == RunState.PARKED
        assert guest.host.vcpus[1].contexts == {}

    def test_a_destroyed_ones_ghcb_is_the_next_ones(self) -> None:
        """It is the VCPU's. edk2 destroys and creates, and its processor goes on with the GHCB that it had."""
        guest = three_vcpus()
        guest.call(self.EVENT, ap(1, 0, 1), 0x3000, rax=1)
        context = guest.host.vcpus[1].contexts[0]
        context.vmcb.ghcb_gpa = context.ghcb = GHCB
        guest.call(self.EVENT, ap(1, 0, 2))
        saved = guest.host.dump()
        for host in (guest.host, three_vcpus().host):
            host.load(saved)
            again = host.vcpus[1].set_vmsa(0, 0x4000)
            assert (again.ghcb, again.vmcb.ghcb_gpa, again.vmcb.vmsa_pa) == (GHCB, GHCB, 0x4000)

    @pytest.mark.parametrize(
        ("info1", "vmsa", "features"),
        [
            (ap(3, 3, 1), 0x3000, 1),
            (ap(1, 4, 1), 0x3000, 1),
            (ap(1, 3, 3), 0x3000, 1),
            (ap(1, 3, 1) | 1 << 20, 0x3000, 1),
            (ap(1, 3, 1), 0x3008, 1),
            (ap(1, 3, 1), MEMORY, 1),
            (ap(1, 3, 1), GHCB, 1),
            (ap(1, 3, 1), 0x3000, 0),
            (ap(0, 0, 1), 0x3000, 1),
        ],
    )
    def test_refused(self, info1: int, vmsa: int, features: int) -> None:
        guest = three_vcpus()
        assert guest.call(self.EVENT, info1, vmsa, rax=features) == malformed(GhcbReason.INVALID_INPUT)
        assert guest.host.vcpus[1].contexts == {}

    def test_needs_features(self) -> None:
        assert three_vcpus().call(self.EVENT, ap(1, 3, 1), 0x3000) == malformed(GhcbReason.MISSING_INPUT)

    @pytest.mark.parametrize("request_code", [0, 1, 2])
    def test_kernel_cannot_touch_its_monitor(self, request_code: int) -> None:
        guest = three_vcpus()
        guest.host.vcpus[0].start(3)
        answer = guest.call(self.EVENT, ap(0, 0, request_code), 0x3000, rax=1)
        assert answer == malformed(GhcbReason.INVALID_INPUT)
        assert guest.host.vcpus[0].contexts[0].vmcb.vmsa_pa == VMSA

    def test_replacement_keeps_the_vcpus_ghcb(self) -> None:
        guest = three_vcpus()
        guest.call(self.EVENT, ap(1, 3, 1), 0x3000, rax=1)
        old = guest.host.vcpus[1].contexts[3]
        old.ghcb = 0x7000
        guest.call(self.EVENT, ap(1, 3, 1), 0x4000, rax=1)
        new = guest.host.vcpus[1].contexts[3]
        assert (new.vmcb.vmsa_pa, new.ghcb, new.vmcb) == (0x4000, 0x7000, old.vmcb)

    def test_reset_hold(self) -> None:
        guest = Guest()
        assert guest.call(0x80000004) == OK
        guest.host.sipi(0)
        assert guest.answer() == {"info1": 0, "info2": 1}

    def test_jump_table(self) -> None:
        guest = Guest()
        assert guest.call(0x80000005, 0, 0x9F000) == OK
        assert guest.call(0x80000005, 1) == {"info1": 0, "info2": 0x9F000}
        assert guest.call(0x80000005, 2) == malformed(GhcbReason.INVALID_INPUT)

    def test_apic_ids(self) -> None:
        guest = Guest(3, apic_ids=[0, 2, 4])
        guest.view.private[SHARED // PAGE] = False
        assert guest.call(0x80000017, rax=0) == OK | {"rax": 1}
        assert guest.call(0x80000017, SHARED, rax=1) == OK | {"rax": 1}
        assert struct.unpack_from("<4I", guest.view.memory, SHARED) == (3, 0, 2, 4)
        assert guest.call(0x80000017, VMSA, rax=1) == malformed(GhcbReason.INVALID_INPUT)


class TestRunVmpl:
    @pytest.mark.parametrize("vmpl", [1, 2, 4, 1 << 32])
    def test_without_a_vmsa(self, vmpl: int) -> None:
        assert three_vcpus().call(0x80000018, vmpl) == malformed(GhcbReason.INVALID_INPUT)

    def test_there_and_back(self) -> None:
        guest = three_vcpus()
        levels = []
        for target in (3, 0, 3):
            guest.call(0x80000018, target)
            levels.append(guest.host.vcpus[0].vmpl)
        assert levels == [3, 0, 3]


@pytest.mark.parametrize("vmpl", [0, 1])
def test_an_init_does_not_cut_a_more_privileged_level_off(vmpl: int) -> None:
    """A kernel could so leave VeilMon in the middle of its work for users, which nobody would take up again."""
    guest = Guest(2, monitor=True)
    vcpu = guest.host.vcpus[1]
    for level in (0, 1):
        vcpu.set_vmsa(level, 0x3000 + level * 0x1000)
    vcpu.start(vmpl)
    waiting = vcpu.set_vmsa(3, 0x2000)
    waiting.on_init = True
    guest.host.init(1)
    assert (vcpu.vmpl, vcpu.state) == (vmpl, RunState.RUNNABLE)
    # It is started when that level wants it run.
    assert guest.host.switch_vmpl(vcpu, vcpu.contexts[vmpl], 3)
    assert vcpu.current is waiting


class TestEnclaves:
    """Contexts of VMPL 2 under a kernel of VMPL 3: registered, and of no VCPU."""

    EVENT = 0x80000013

    def test_registered_and_forgotten(self) -> None:
        guest = three_vcpus()
        assert guest.call(self.EVENT, ap(1, 2, 1), 0x3000, rax=1) == OK
        context = guest.host.enclaves.get(0x3000)
        assert context is not None
        assert (context.vmpl, context.vmcb.ghcb_gpa) == (2, 3 << 32 | 0x16)
        assert [2 in vcpu.contexts for vcpu in guest.host.vcpus] == [False] * 3
        assert guest.call(self.EVENT, ap(0, 2, 2), 0x3000) == OK
        assert guest.host.enclaves.get(0x3000) is None
        assert guest.call(self.EVENT, ap(0, 2, 2), 0x3000) == malformed(GhcbReason.INVALID_INPUT)

    @pytest.mark.parametrize(
        ("info1", "vmsa", "features"),
        [
            (ap(0, 2, 0), 0x3000, 1),
            (ap(0, 2, 3), 0x3000, 1),
            (ap(0, 2, 1), 0x3008, 1),
            (ap(0, 2, 1), MEMORY, 1),
            (ap(0, 2, 1), GHCB, 1),
            (ap(0, 2, 1), 0x3000, 0),
        ],
    )
    def test_refused(self, info1: int, vmsa: int, features: int) -> None:
        guest = three_vcpus()
        assert guest.call(self.EVENT, info1, vmsa, rax=features) == malformed(GhcbReason.INVALID_INPUT)
        assert guest.host.enclaves.get(vmsa) is None

    @pytest.mark.parametrize("request_code", [1, 2])
    def test_a_kernel_registers_none_and_takes_none_away(self, request_code: int) -> None:
        guest = three_vcpus()
        guest.host.enclaves.add(0x3000)
        guest.host.vcpus[0].start(3)
        known = guest.host.enclaves.get(0x3000)
        for vmsa in (0x3000, 0x4000):
            answer = guest.call(self.EVENT, ap(0, 2, request_code), vmsa, rax=1)
            assert answer == malformed(GhcbReason.INVALID_INPUT)
        assert (guest.host.enclaves.get(0x3000), guest.host.enclaves.get(0x4000)) == (known, None)

    def test_a_guest_whose_kernel_is_at_vmpl_2_has_none(self) -> None:
        guest = Guest(2, monitor=True, kernel_vmpl=2)
        assert guest.call(self.EVENT, ap(1, 2, 1), 0x3000, rax=1) == OK
        assert guest.host.vcpus[1].vmpl == 2
