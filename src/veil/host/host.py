# SPDX-License-Identifier: GPL-2.0-or-later
"""What handlers of a guest's requests see of its host: the machine, the VCPUs, and what may be done with them.

They know nothing of how the host runs the guest: `veil.host.hypervisor`, whose class is a `Host`, knows them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.formats.domains import ENCLAVE_VMPL
from veil.formats.ghcb import RUN_VMPL_REFUSED, HypervisorFeatures
from veil.formats.page_sizes import PAGE_SIZE, PAGE_SIZE_2M
from veil.host.counters import Counters
from veil.host.cpuid_answers import CpuidAnswers
from veil.host.enclave_contexts import EnclaveContexts
from veil.host.errors import HostError
from veil.host.observer_events import PageStateEvent, VmplEntryEvent, VmplSwitchEvent
from veil.host.page_state import change_page_state
from veil.host.protection import Protection
from veil.host.vcpu import NO_IRQ, Hold, RunState, Vcpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from veil.host.interfaces import HostMemory, Platform, SnpMachine
    from veil.host.observer_events import Event
    from veil.host.vcpu import Context

__all__ = ["Host"]

# Plain names: looking one up in an enumeration takes as long as the rest of a line.
_NO_HOLD = Hold.NONE
_RUNNABLE = RunState.RUNNABLE

OFFERED_FEATURES = (
    HypervisorFeatures.SNP
    | HypervisorFeatures.AP_CREATION
    | HypervisorFeatures.APIC_ID_LIST
    | HypervisorFeatures.MULTI_VMPL
)


class Host:
    """One guest's machine and VCPUs, as its requests can change them. For one thread."""

    def __init__(
        self,
        machine: SnpMachine,
        platform: Platform,
        vcpus: int,
        *,
        kernel_vmpl: int,
        monitor: bool,
        cpuid: Iterable[tuple[int, int, int, int, int, int]],
        apic_ids: Sequence[int] | None,
        certificates: Callable[[], bytes],
    ) -> None:
        """As `Hypervisor`. Raises HostError if there are no VCPUs, or not as many APIC IDs."""
        if vcpus < 1:
            raise HostError(f"a guest needs at least one VCPU, not {vcpus}")
        if apic_ids is not None and len(set(apic_ids)) != vcpus:
            raise HostError(f"{vcpus} VCPUs need as many different APIC IDs, not {list(apic_ids)}")
        self.machine = machine
        self.platform = platform
        self.view: HostMemory = machine.host_view()
        #: (GPA, length) of each piece
        self.ram = list(machine.ram_ranges)
        #: the level that takes the platform's interrupts
        self.kernel_vmpl = kernel_vmpl
        ids = list(apic_ids) if apic_ids is not None else list(range(vcpus))
        self.vcpus = [Vcpu(index, ids[index], machine.new_vmcb) for index in range(vcpus)]
        #: at which contexts run that belong to no VCPU, in the kernel's place (-1: at none)
        self.enclave_vmpl = ENCLAVE_VMPL if monitor and kernel_vmpl > ENCLAVE_VMPL else -1
        #: is it VeilMon that runs at VMPL 0? Of other images a host knows only which levels there are
        self.has_veilmon = monitor
        self.switches = machine.new_switches()
        self.enclaves = EnclaveContexts(machine.new_vmcb, self.switches)
        self.cpuid = CpuidAnswers(cpuid)
        self.certificates = certificates
        #: what each level may not ask about; a test that makes the host hostile puts an empty one here
        self.protection = Protection()
        self.features = int(OFFERED_FEATURES)
        self.ap_jump_table = 0
        self.counts = Counters()
        #: an observer, for those who test SNP software
        self.on_event: Callable[[Event], None] | None = None
        #: do the guest's services decide what becomes of accesses of its kernel that the RMP refuses (launch data)?
        self.hands_on_refusals: Callable[[], bool] = lambda: False
        #: an access with the other C-bit changes the page's state, as under KVM; off: it ends the guest, with words
        self.converts_pages = False
        #: called first at every nested page fault with (VCPU, VMPL, GPA, EXITINFO1); True: resolved, run on
        self.on_npf: Callable[[int, int, int, int], bool] | None = None
        #: set by handlers: the VCPU's slice ends
        self.reschedule = False
        #: set by handlers: a device was used, so its timers may have moved
        self.device_accessed = True

    def offered_features(self, context: Context) -> int:
        """What the host can do, for a level: #HV is for those that ask for it in their VMSA."""
        return self.features | (HypervisorFeatures.RESTRICTED_INJECTION if context.restricted else 0)

    def call_in(self, vcpu: Vcpu, vmpl: int) -> None:
        """Something came for a level of the VCPU: if a less privileged one runs there, it has to wait."""
        current = vcpu.current
        if current is not None and current.vmpl > vmpl and vcpu.state in (RunState.RUNNABLE, RunState.HALTED):
            self.enter(vcpu, vmpl)
        self.reschedule = True

    def in_ram(self, gpa: int, length: int) -> bool:
        """Is all of the range guest memory?"""
        return any(start <= gpa and gpa + length <= start + size for start, size in self.ram)

    def touches_ram(self, gpa: int, length: int) -> bool:
        """Is any of the range guest memory?"""
        return any(gpa < start + size and start < gpa + length for start, size in self.ram)

    def may_name(self, context: Context, gpa: int, length: int) -> bool:
        """Is the range guest memory that a request of this context may be about?"""
        if not self.in_ram(gpa, length) or not self.protection.allows(context.vmpl, gpa, length):
            return False
        # VMSAs, of the launch and of AP creation, wherever they lie.
        if context.vmpl > self.enclave_vmpl and self.enclaves.touches(gpa, length):
            return False
        return not any(
            other.vmpl < context.vmpl and gpa <= other.vmcb.vmsa_pa < gpa + length
            for vcpu in self.vcpus
            for other in vcpu.contexts.values()
        )

    def vcpu_by_apic_id(self, apic_id: int) -> Vcpu | None:
        """The VCPU with this APIC ID."""
        for vcpu in self.vcpus:
            if vcpu.apic_id == apic_id:
                return vcpu
        return None

    def change_page(self, vcpu: Vcpu, context: Context, gpa: int, *, private: bool, large: bool) -> bool:
        """A page state change on the guest's request; the range is guest memory."""
        if not change_page_state(self.view, gpa, private=private, large=large):
            return False
        self.counts.page_changes += 1
        if self.on_event is not None:
            size = PAGE_SIZE_2M if large else PAGE_SIZE
            self.on_event(PageStateEvent(vcpu.index, context.vmpl, gpa, size, private))
        return True

    def create_context(self, vcpu: Vcpu, vmpl: int, vmsa: int) -> Context:
        """A VMSA for a level of a VCPU, on the guest's request. Without VeilMon the kernel is whoever is least
        privileged: the platform's interrupts go there from now on."""
        created = vcpu.set_vmsa(vmpl, vmsa)
        if not self.has_veilmon and vmpl > self.kernel_vmpl:
            for each in self.vcpus:
                for context in each.contexts.values():
                    if context.irq != NO_IRQ:
                        context.withdraw_interrupt()
            self.kernel_vmpl = vmpl
            self.reschedule = True
        return created

    def switch_vmpl(self, vcpu: Vcpu, context: Context, vmpl: int) -> bool:
        """The VCPU goes on at another of its VMPLs; False if it has no VMSA for that."""
        target = vcpu.contexts.get(vmpl)
        if target is None or target.on_init:
            return False
        vcpu.current = target
        target.hold = _NO_HOLD
        target.refused, target.handed_on = target.handed_on, None
        vcpu.state = _RUNNABLE
        if self.on_event is not None:
            self.on_event(VmplSwitchEvent(vcpu.index, context.vmpl, vmpl))
        return True

    def enter(self, vcpu: Vcpu, vmpl: int) -> None:
        """The VCPU leaves the kernel for a more privileged level that it has, which the kernel has not asked for."""
        if self.on_event is not None and vcpu.current is not None:
            self.on_event(VmplEntryEvent(vcpu.index, vcpu.current.vmpl, vmpl))
        vcpu.start(vmpl)

    def enter_enclave(self, vcpu: Vcpu, context: Context, vmsa: int) -> bool:
        """The kernel wants a context of VMPL 2 run in its place; False if that is not to be."""
        enclave = self.enclaves.get(vmsa)
        # Only the kernel: the way back leads to it. What another VCPU has begun is that one's until it leaves.
        if enclave is None or context.vmpl != self.kernel_vmpl or any(other.current is enclave for other in self.vcpus):
            return False
        vcpu.current = enclave
        if self.on_event is not None:
            self.on_event(VmplSwitchEvent(vcpu.index, context.vmpl, enclave.vmpl))
        return True

    def leave_enclave(self, vcpu: Vcpu, answer: int | None = None) -> None:
        """Back to the VCPU's kernel, which finds `answer` to its request, or the one that it got when it was done."""
        enclave, kernel = vcpu.current, vcpu.contexts.get(self.kernel_vmpl)
        assert enclave is not None
        if kernel is None or not self.switch_vmpl(vcpu, enclave, self.kernel_vmpl):
            vcpu.park()
        elif answer is not None:
            kernel.vmcb.ghcb_gpa = answer

    def drop_enclave(self, vmsa: int) -> bool:
        """The context must not run any more; False if there was none. A VCPU that ran it goes back to its kernel."""
        enclave = self.enclaves.drop(vmsa)
        for vcpu in self.vcpus:
            if enclave is not None and vcpu.current is enclave:
                self.leave_enclave(vcpu, RUN_VMPL_REFUSED)
        return enclave is not None
