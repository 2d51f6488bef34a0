# SPDX-License-Identifier: GPL-2.0-or-later
"""The untrusted host: it launches a guest, runs its VCPUs in turn, and answers their requests.

Nothing of the guest's protection rests on this package. It is the host that people run, and the one that tests turn
hostile.
"""

from __future__ import annotations

import enum
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from veil.formats.domains import KERNEL_VMPL, MONITOR_VMPL, SERVICE_VMPL
from veil.formats.ghcb import MSR_INFO_MASK
from veil.formats.launch_digest import PageType
from veil.host.channel_turns import ChannelTurns
from veil.host.errors import GuestError, GuestHung, GuestPowerOff, GuestReset, HostError, LaunchRefused
from veil.host.exits import EXIT_HANDLERS, leave_enclave, unexpected
from veil.host.ghcb.reset_hold import answer_reset_hold
from veil.host.host import Host
from veil.host.launch import (
    DEFAULT_POLICY,
    LaunchIdentityBlock,
    LaunchRegion,
    SharedPages,
    has_restricted_injection,
    load_image,
)
from veil.host.machine_switches import MachineSwitches
from veil.host.observer_events import ExitEvent
from veil.host.outlived_kernel import KernelEnd
from veil.host.protection import ProtectedRange, Protection
from veil.host.saved_state import require_like
from veil.host.scheduler import LONG_SLICE_NS, MAX_PAUSES, SLICE_NS, Scheduler
from veil.host.service_pulse import FOREVER, Pulse
from veil.host.vcpu import NO_IRQ, RunState, Vcpu
from veil.snp.exit_codes import ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from veil.host.interfaces import Platform, SnpMachine
    from veil.host.vcpu import Context

__all__ = ["Hypervisor", "RunResult"]

#: Answers that VeilMon takes in a slice before anybody else runs.
_MAX_ANSWERS = 256

_VMGEXIT = int(ExitCode.VMGEXIT)


class RunResult(enum.Enum):
    """Why `Hypervisor.run` came back."""

    DONE = "done"
    TIMEOUT = "timeout"
    STOPPED = "stopped"


class Hypervisor(Host):
    """The host of one guest.

    Only `post`, `post_for_channel`, `listener_worked`, `wake` and `stop` may be called from other threads.
    """

    def __init__(
        self,
        machine: SnpMachine,
        platform: Platform,
        vcpus: int = 1,
        *,
        monitor: bool = True,
        kernel_vmpl: int | None = None,
        cpuid: Iterable[tuple[int, int, int, int, int, int]] = (),
        apic_ids: Sequence[int] | None = None,
        certificates: Callable[[], bytes] = bytes,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`monitor`: it is VeilMon at VMPL 0, with the services that it knows. `kernel_vmpl` takes the platform's
        interrupts: 3 under VeilMon, else 0; without it, a less privileged level that comes later takes them over.
        `cpuid` is the launch's table.

        `certificates` gives the certificate table for extended guest requests. `clock` is that of `vmrun`'s deadlines.
        """
        super().__init__(
            machine,
            platform,
            vcpus,
            kernel_vmpl=kernel_vmpl if kernel_vmpl is not None else KERNEL_VMPL if monitor else MONITOR_VMPL,
            monitor=monitor,
            cpuid=cpuid,
            apic_ids=apic_ids,
            certificates=certificates,
        )
        self.kernel_end = KernelEnd(self)
        #: the machine does plain domain switches between the kernel and enclaves; off: each comes to this host
        self.switches_by_machine = True
        self._machine_switches = MachineSwitches(self)
        self._clock = clock
        self._scheduler = Scheduler(self)
        self._timer_ns = 0
        self.pulse = Pulse(clock)
        self._inbox: deque[Callable[[], None]] = deque()
        self._stop: HostError | None = None
        self._stopped = False
        self._wakeup = threading.Event()
        self._turns = ChannelTurns(lambda: self.post(_look), clock)
        self._channel = platform.channel
        self._channel.on_pending = self._end_slice
        platform.on_init, platform.on_sipi, platform.on_reset = self.init, self.sipi, self._reset
        platform.on_nmi, platform.on_power_off = self.nmi, self._power_off
        platform.connect_cr8(self._read_cr8, self._write_cr8)
        # Devices move data for the kernel: its descriptors reach no further than its requests.
        platform.confine(lambda gpa, length: self.protection.allows(self.kernel_vmpl, gpa, length))
        machine.set_pause_limit(MAX_PAUSES if vcpus > 1 else 0)

    # Launch

    def launch(
        self,
        regions: Iterable[LaunchRegion],
        *,
        protected: Iterable[ProtectedRange] = (),
        policy: int = DEFAULT_POLICY,
        host_data: bytes = bytes(32),
        identity: LaunchIdentityBlock | None = None,
        shared: Iterable[SharedPages] = (),
    ) -> None:
        """Load and measure the image; VCPU 0 will start at its most privileged VMSA.

        `protected`: memory about which levels less privileged than its own may ask nothing. `host_data` (32 bytes) and
        `identity` (the guest owner's signed ID block) go into the guest's reports. `shared` pages stay the host's.
        """
        image = list(regions)
        protection = Protection.at_launch(protected, self.ram)
        load_image(
            self.view,
            self.machine.secure_processor,
            self.ram,
            image,
            vcpus=len(self.vcpus),
            policy=policy,
            host_data=host_data,
            identity=identity,
            shared=list(shared),
        )
        self.protection = protection
        for region in image:
            if region.kind == PageType.VMSA:
                context = self.vcpus[region.vcpu].set_vmsa(region.vmpl, region.gpa)
                context.restricted = has_restricted_injection(region)
        if not self.vcpus[0].contexts:
            raise LaunchRefused("the image has no VMSA for VCPU 0")
        self.vcpus[0].start(min(self.vcpus[0].contexts))
        # The others wait for INIT and SIPI, as after the reset of a real machine.
        for vcpu in self.vcpus[1:]:
            if vcpu.contexts:
                vcpu.current = vcpu.contexts[min(vcpu.contexts)]

    # Other threads

    def post(self, action: Callable[[], None]) -> None:
        """Call `action` in the hypervisor's thread, soon; for input to devices. Safe in any thread."""
        self._inbox.append(action)
        self.wake()

    def listener_worked(self, nanoseconds: int) -> None:
        """What users of the channel cost in the listener's thread since it said so last: the guest has it back."""
        self._turns.worked(nanoseconds)

    def post_for_channel(self, action: Callable[[], None]) -> None:
        """The same for what users of the channel send: the guest comes first (`ChannelTurns`). Safe in any thread."""
        self._turns.put(action)

    def wake(self) -> None:
        """Make the run loop look for input, even if all VCPUs sleep. Safe in any thread."""
        self._wakeup.set()
        self.machine.kick()

    def stop(self, error: HostError | None = None) -> None:
        """End `run`, which raises `error` or returns STOPPED. Safe in any thread, and for devices."""
        self._stop = error
        self._stopped = True
        self.reschedule = True
        self.wake()

    def _end_slice(self) -> None:
        self.reschedule = True

    def _power_off(self) -> None:
        self.stop(GuestPowerOff("the guest switched its machine off"))

    def _reset(self) -> None:
        self.stop(GuestReset("the guest reset its machine; a confidential VM starts again only by a new launch"))

    # What becomes of VCPUs

    def switch_vmpl(self, vcpu: Vcpu, context: Context, vmpl: int) -> bool:
        """As `Host`; keeps the account of whose turn it is."""
        if not super().switch_vmpl(vcpu, context, vmpl):
            return False
        if vmpl == self.kernel_vmpl:
            if vcpu is self.pulse.vcpu:
                self.pulse.kernel_runs()
            if vcpu is self._turns.vcpu:
                self.reschedule = True  # the turn is over
        elif vmpl == SERVICE_VMPL and self.has_veilmon:
            self.pulse.services_run()
        return True

    def init(self, index: int) -> None:
        """An INIT reached a VCPU: a VMSA that waited for it (AP_CREATE_ON_INIT) becomes the one to start."""
        vcpu = self.vcpus[index]
        for context in vcpu.contexts.values():
            if context.on_init:
                context.on_init = False
                # A level above it is not to be left in the middle, on a kernel's word; it will switch by itself.
                if not vcpu.is_busy_above(context.vmpl):
                    vcpu.start(context.vmpl)
                    self.reschedule = True
                return

    def sipi(self, index: int) -> None:
        """A start-up IPI reached a VCPU: it ends an AP reset hold."""
        vcpu = self.vcpus[index]
        context = vcpu.current
        if vcpu.state != RunState.WAIT_SIPI or context is None or context.on_init:
            return
        answer_reset_hold(self.view, context)
        vcpu.start(context.vmpl)
        self.reschedule = True

    def nmi(self, index: int) -> None:
        """An NMI reached a VCPU: its kernel takes it when it runs next, unless it is parked or waits for SIPI."""
        vcpu = self.vcpus[index]
        kernel = vcpu.contexts.get(self.kernel_vmpl)
        if kernel is not None and vcpu.state in (RunState.RUNNABLE, RunState.HALTED):
            kernel.offer_nmi()

    def _read_cr8(self, index: int) -> int:
        kernel = self.vcpus[index].contexts.get(self.kernel_vmpl)
        return 0 if kernel is None else kernel.cr8

    def _write_cr8(self, index: int, value: int) -> None:
        kernel = self.vcpus[index].contexts.get(self.kernel_vmpl)
        if kernel is not None:
            kernel.cr8 = value

    # The run loop

    def run(self, until: Callable[[], bool] | None = None, timeout: float | None = None) -> RunResult:
        """Run the guest until `until()` holds, `timeout` seconds passed, or `stop`; how a guest ends is an exception.

        With `kernel_end.is_outlived` the kernel's end is not the run's: VMPL 0 and 1 go on.
        `until` is asked after every exit, so it should be cheap.
        """
        clock = self._clock
        end_ns = FOREVER if timeout is None else clock() + int(timeout * 1e9)
        while True:
            self.reschedule = False
            self._drain()
            if self._stopped:
                error, self._stop, self._stopped = self._stop, None, False
                if error is None:
                    return RunResult.STOPPED
                self.kernel_end.outlive(error)
            if until is not None and until():
                return RunResult.DONE
            now = clock()
            if now >= end_ns:
                return RunResult.TIMEOUT
            if self.device_accessed or now >= self._timer_ns:
                self._tick(now)
            # Before the channel: users who never stop asking must not keep the services from being run.
            pulsed = now >= self.pulse.due_ns and self._turns.vcpu is None and self._pulse(now)
            if not pulsed and (self._turns.vcpu is not None or self._channel_waits):
                self._serve_channel(now)
            vcpu = self._scheduler.choose()
            if vcpu is None:
                self._sleep(end_ns)
                continue
            try:
                if self._turns.vcpu is None:
                    self._slice(vcpu, until, end_ns)
                else:
                    with self._turns.charged():
                        self._slice(vcpu, until, end_ns)
            except GuestError as error:
                self.kernel_end.outlive(error)

    @property
    def idle(self) -> bool:
        """Does every VCPU wait for something to come? At this moment; a timer's tick is enough to change it."""
        return self._scheduler.idle

    @property
    def _channel_waits(self) -> bool:
        return self._turns.waiting or self._channel.pending

    def _serve_channel(self, now: int) -> None:
        """Begin or end a turn for the channel's users.

        VeilMon runs on the first VCPU whose kernel it can interrupt. A kernel that waits in HLT goes on afterwards as
        if an interrupt had come; it looks for work and waits again.
        """
        turns = self._turns
        if turns.vcpu is not None:
            if turns.vcpu.state == RunState.RUNNABLE and turns.vcpu.vmpl != self.kernel_vmpl:
                # VeilMon may wait there for what it has begun, or a service has, on another VCPU.
                self._scheduler.prefer_next(self._is_in_the_middle)
                return
            self._channel.flush()
            turns.end()
            if not self._channel_waits:
                return
        if now < turns.not_before and not self.idle:
            return
        turns.begin(self._channel.gathering())
        if self._channel.pending and self.kernel_vmpl:
            for vcpu in self.vcpus:
                if self.kernel_end.may_enter(vcpu, MONITOR_VMPL):
                    self._channel.entered()
                    self.enter(vcpu, MONITOR_VMPL)
                    turns.vcpu = vcpu
                    self._scheduler.prefer(vcpu)
                    return
        turns.end()

    def _is_in_the_middle(self, vcpu: Vcpu) -> bool:
        """Of something that VeilMon or the services do there."""
        return vcpu is self._turns.vcpu or (vcpu.is_busy_above(self.kernel_vmpl) and vcpu.vmpl != self.enclave_vmpl)

    def _pulse(self, now: int) -> bool:
        """Run the services where they can interrupt the kernel, if nobody has called them. Do they run now?"""
        able = (vcpu for vcpu in self.vcpus if self.kernel_end.may_enter(vcpu, SERVICE_VMPL))
        vcpu = self.pulse.choose(now, able if self.kernel_vmpl > SERVICE_VMPL else ())
        if vcpu is None:
            return False
        self.enter(vcpu, SERVICE_VMPL)
        self._scheduler.prefer(vcpu)
        return True

    def _drain(self) -> None:
        inbox = self._inbox
        while inbox:
            inbox.popleft()()
            self.device_accessed = True

    def _tick(self, now: int) -> None:
        self.platform.tick(now)
        self._refresh_timer()

    def _refresh_timer(self) -> None:
        deadline = FOREVER
        self.device_accessed = False
        if self.kernel_end.error is not None:
            self._timer_ns = deadline  # nobody takes their interrupts any more
            return
        next_deadline = self.platform.next_deadline_ns
        for vcpu in self.vcpus:
            when = next_deadline(vcpu.index)
            if when is not None and when < deadline:
                deadline = when
        self._timer_ns = deadline

    def _sleep(self, end_ns: int) -> None:
        """Nobody can run: wait for the next timer, for input, or for the end."""
        if self.kernel_end.error is None and self._scheduler.hung:
            hung = GuestHung(
                "no VCPU can ever run again: each is halted with interrupts off, parked, or was never started; "
                "the guest's last console output tells why"
            )
            self.kernel_end.outlive(hung)
            return
        until_ns = min(self._timer_ns, self.pulse.due_ns, end_ns)
        timeout = None if until_ns == FOREVER else max(0, until_ns - self._clock()) / 1e9
        self._wakeup.wait(timeout)
        self._wakeup.clear()
        self.device_accessed = True

    def _slice(self, vcpu: Vcpu, until: Callable[[], bool] | None, end_ns: int) -> None:
        """Run one VCPU until its time is up, it stops, or somebody else should run."""
        clock = self._clock
        scheduler = self._scheduler
        vmrun = self.machine.vmrun
        platform = self.platform
        counts = self.counts.exits
        handlers = EXIT_HANDLERS
        runnable = RunState.RUNNABLE
        inbox = self._inbox
        index = vcpu.index
        kernel_vmpl = self.kernel_vmpl
        several = len(self.vcpus) > 1
        enclave_vmpl = self.enclave_vmpl
        vmrun_switching, switches = self.machine.vmrun_switching, self.switches
        switching = self.switches_by_machine and self._machine_switches.begin(vcpu)
        alone = not scheduler.can_another_run(vcpu)
        answers = 0
        begin = clock()
        limit = min(end_ns, begin + (LONG_SLICE_NS if alone else SLICE_NS))
        if begin < self._turns.not_before < limit and self._channel_waits:
            limit = self._turns.not_before
        while True:
            context = vcpu.current
            if context is None or vcpu.state is not runnable:
                return
            vmpl = context.vmpl
            if vmpl == kernel_vmpl:
                vector = platform.pending_vector(index)
                if vector is None:
                    if context.irq != NO_IRQ:
                        context.withdraw_interrupt()
                elif vector != context.irq:
                    context.offer_interrupt(vector, passes=platform.passes_priorities(index))
            elif context.is_enclave and scheduler.is_due(vcpu):
                # Whatever the kernel's RFLAGS.IF: it stands in its request to run the enclave, with interrupts off.
                self.leave_enclave(vcpu)
                continue
            if context.doorbell is not None:
                context.ring()
            if self.device_accessed:
                self._refresh_timer()
            deadline = limit if limit < self._timer_ns else self._timer_ns
            vmcb = context.vmcb
            if not switching or vmpl < enclave_vmpl:
                vmrun(vmcb, deadline)
            elif (vmsa := vmrun_switching(vmcb, switches, deadline)) != vmcb.vmsa_pa:
                context = self._machine_switches.left(vcpu, vmsa)
                vmpl, vmcb = context.vmpl, context.vmcb
            if context.irq != NO_IRQ and context.interrupt_taken():
                platform.acknowledge(index)
            code = vmcb.exit_code
            counts[code] = counts.get(code, 0) + 1
            if self.on_event is not None:
                self.on_event(ExitEvent(index, vmpl, code, vmcb.exit_info_1, vmcb.exit_info_2))
            (leave_enclave if context.is_enclave else handlers.get(code, unexpected))(self, vcpu, context)
            if vmpl == MONITOR_VMPL and kernel_vmpl and code == _VMGEXIT and not vmcb.ghcb_gpa & MSR_INFO_MASK:
                # The answer lies in shared pages, which the kernel on another VCPU could write before VeilMon reads it.
                answers += 1
                if answers < _MAX_ANSWERS:
                    continue
            if self.reschedule or inbox or (until is not None and until()):
                return
            if several and self.device_accessed and scheduler.signalled(vcpu):
                return
            now = clock()
            if now >= deadline:
                if now >= self._timer_ns:
                    self._tick(now)
                if now >= limit or not alone:
                    return
                if scheduler.can_another_run(vcpu):
                    return

    # Bookkeeping

    def counters(self) -> dict[str, int]:
        """How often what happened, by name, the machine's own domain switches with it."""
        counts = self.counts.by_name()
        self._machine_switches.add_to(counts)
        return counts

    def dump(self) -> dict[str, Any]:
        """Everything of the host that a snapshot needs; memory and VMSAs are the machine's."""
        return {
            "kernel_vmpl": self.kernel_vmpl,
            "enclaves": self.enclaves.dump(),
            "vcpus": [vcpu.dump() for vcpu in self.vcpus],
            "turn": self._scheduler.turn,
            "ap_jump_table": self.ap_jump_table,
            "protected": self.protection.dump(),
            "platform": self.platform.dump(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a snapshot; the machine must be restored already. Raises HostError, whatever the state is."""
        require_like(state, self.dump())
        try:
            vcpus, turn, jump_table = state["vcpus"], int(state["turn"]), int(state["ap_jump_table"])
            kernel_vmpl, platform = int(state["kernel_vmpl"]), state["platform"]
            protected, enclaves = state["protected"], state["enclaves"]
        except (KeyError, TypeError, ValueError) as error:
            raise HostError(f"snapshot: the host's state is damaged ({error!r})") from error
        if len(vcpus) != len(self.vcpus):
            raise HostError(f"snapshot: it has {len(vcpus)} VCPUs, this host has {len(self.vcpus)}")
        self.enclaves.load(enclaves)
        for vcpu, saved in zip(self.vcpus, vcpus, strict=True):
            vcpu.load(saved, self.view, self.enclaves.get)
            for context in vcpu.contexts.values():
                self.machine.attach_vmcb(context.vmcb)
        if self.has_veilmon and any(SERVICE_VMPL in vcpu.contexts for vcpu in self.vcpus):
            self.pulse.begin()
        self.kernel_vmpl, self.ap_jump_table = kernel_vmpl, jump_table
        self._scheduler.turn = turn % len(self.vcpus)
        self.protection = Protection.load(protected)
        self.platform.load(platform)
        self.device_accessed = True


def _look() -> None:
    """Nothing: that it was posted makes the run loop look around."""
