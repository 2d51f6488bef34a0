# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine that plays scripted exits and a platform that records accesses, for tests of the host alone."""

from __future__ import annotations

import contextlib
import struct
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from veil.formats.ghcb import GhcbReason
from veil.host import Hypervisor, RunState
from veil.snp.errors import RmpViolation
from veil.snp.exit_codes import ExitCode
from veil.snp.layouts import Vmcb
from veil.snp.rmp import PageSize, RmpResult

PAGE = 4096
PAGE_2M = 512 * PAGE
MEMORY = 2 * PAGE_2M
GHCB = 0x5000
BUFFER = GHCB + 0x800
VMSA = 0x1000

#: the tests make this page shared
SHARED = 0x8000

V_IRQ = 1 << 8


class FakeView:
    """A host view with a simple RMP: for each page shared, private, or private in an entry of 2 MiB."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = bytearray(size)
        self.private = [False] * (size // PAGE)
        self.large: set[int] = set()
        self.log: list[tuple[Any, ...]] = []
        self.refuse: RmpResult | None = None

    def is_shared(self, gpa: int, length: int = 1, /) -> bool:
        if gpa < 0 or length < 0 or gpa + length > self.size:
            return False
        return not any(self.private[gpa // PAGE : -(-(gpa + length) // PAGE)])

    def is_private(self, gpa: int, length: int = 1, /) -> bool:
        if gpa < 0 or length < 0 or gpa + length > self.size:
            return False
        return all(self.private[gpa // PAGE : -(-(gpa + length) // PAGE)])

    def _check(self, gpa: int, length: int, access: str) -> None:
        if gpa < 0 or gpa + length > self.size:
            raise RmpViolation(gpa, None, access, "outside guest memory")

    def read(self, gpa: int, length: int, /) -> bytes:
        self._check(gpa, length, "read")
        if self.is_shared(gpa, length):
            return bytes(self.memory[gpa : gpa + length])
        return bytes((gpa + i) * 167 >> 3 & 0xFF for i in range(length))

    def write(self, gpa: int, data: bytes, /) -> None:
        self._check(gpa, len(data), "write")
        if not self.is_shared(gpa, len(data)):
            raise RmpViolation(gpa, None, "write", "the page is the guest's")
        self.memory[gpa : gpa + len(data)] = data

    def rmpupdate(
        self,
        gpa: int,
        *,
        assigned: bool,
        size: PageSize = PageSize.SIZE_4K,
        immutable: bool = False,
        count: int = 1,
    ) -> RmpResult:
        self.log.append(("rmpupdate", gpa, assigned, size, count))
        if self.refuse is not None:
            return self.refuse
        for index in range(count):
            code = self._update(gpa + index * size.pages * PAGE, assigned, size)
            if code != RmpResult.SUCCESS:
                return code
        return RmpResult.SUCCESS

    def _update(self, gpa: int, assigned: bool, size: PageSize) -> RmpResult:
        page = gpa // PAGE
        base = page & ~511
        if gpa % (size.pages * PAGE) or gpa + size.pages * PAGE > self.size:
            return RmpResult.FAIL_INPUT
        if size == PageSize.SIZE_4K:
            if base in self.large:
                return RmpResult.FAIL_OVERLAP
            assert not (assigned and self.private[page]), "a page lost its validation"
            self.private[page] = assigned
            return RmpResult.SUCCESS
        if base not in self.large and any(self.private[base : base + 512]):
            return RmpResult.FAIL_OVERLAP
        assert not (assigned and base in self.large), "a page lost its validation"
        self.private[base : base + 512] = [assigned] * 512
        (self.large.add if assigned else self.large.discard)(base)
        return RmpResult.SUCCESS

    def psmash(self, gpa: int, /) -> RmpResult:
        self.log.append(("psmash", gpa))
        if gpa % PAGE_2M or gpa // PAGE not in self.large:
            return RmpResult.FAIL_INPUT
        self.large.discard(gpa // PAGE)
        return RmpResult.SUCCESS


class FakeProcessor:
    """Records launch commands."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []

    def launch_start(self, policy: int, /) -> None:
        self.log.append(("start", policy))

    def launch_update(
        self,
        gpa: int,
        data: bytes,
        page_type: Any,
        /,
        *,
        vmpl_perms: tuple[int, int, int] = (0, 0, 0),
        large: bool = False,
    ) -> None:
        self.log.append(("update", gpa, len(data), int(page_type), vmpl_perms))

    def launch_update_vmsa(self, gpa: int, vmsa: bytes, /, *, measured_gpa: int = 0) -> None:
        self.log.append(("vmsa", gpa, len(vmsa)))

    def launch_finish(self, *, host_data: bytes = b"") -> None:
        self.log.append(("finish", host_data))


Step = Callable[[Vmcb], ExitCode | int | None]


class FakeSwitches:
    """The machine's policy of domain switches, which nobody follows."""

    def put(self, vmsa: int, vmcb: Vmcb | None) -> None:
        pass

    def aim(self, kernel: Vmcb, held: list[int]) -> None:
        pass


class FakeCounters:
    switches = 0


class FakeMachine:
    """Each VMRUN takes the next step of its VMSA's script; a script that is over halts with interrupts on."""

    def __init__(self, size: int = MEMORY) -> None:
        self.view = FakeView(size)
        self.secure_processor: Any = FakeProcessor()
        self.scripts: dict[int, deque[Step]] = {}
        self.ran: list[int] = []
        self.deadlines: list[int] = []
        self.kicks = 0
        self.attached: list[int] = []
        self.counters = FakeCounters()
        self.pause_limit: int | None = None

    @property
    def ram_ranges(self) -> list[tuple[int, int]]:
        return [(0, self.view.size)]

    def host_view(self) -> FakeView:
        return self.view

    def new_vmcb(self) -> Vmcb:
        return Vmcb()

    def new_switches(self) -> FakeSwitches:
        return FakeSwitches()

    def vmrun_switching(self, vmcb: Vmcb, policy: FakeSwitches, deadline_ns: int = 0, /) -> int:
        """It leaves every switch to the host."""
        self.vmrun(vmcb, deadline_ns)
        return vmcb.vmsa_pa

    def kick(self) -> None:
        self.kicks += 1

    def set_pause_limit(self, limit: int, /) -> None:
        self.pause_limit = limit

    def attach_vmcb(self, vmcb: Vmcb, /) -> None:
        self.attached.append(vmcb.vmsa_pa)

    def tsc(self) -> int:
        return 0x1_2345_6789

    def script(self, vmsa: int, *steps: Step) -> None:
        self.scripts.setdefault(vmsa, deque()).extend(steps)

    def vmrun(self, vmcb: Vmcb, deadline_ns: int = 0, /) -> None:
        self.ran.append(vmcb.vmsa_pa)
        self.deadlines.append(deadline_ns)
        vmcb.exit_info_1 = vmcb.exit_info_2 = vmcb.exit_int_info = 0
        vmcb.interrupt_shadow = 2
        script = self.scripts.get(vmcb.vmsa_pa)
        code = script.popleft()(vmcb) if script else ExitCode.HLT
        vmcb.exit_code = ExitCode.VMGEXIT if code is None else code


class FakeChannel:
    """The channel device's face to the run loop."""

    def __init__(self) -> None:
        self.pending = False
        self.on_pending: Callable[[], None] | None = None
        self.entries = 0

    def entered(self) -> None:
        self.pending = False
        self.entries += 1

    def flush(self) -> None:
        pass

    @contextlib.contextmanager
    def gathering(self) -> Iterator[None]:
        yield


class FakePlatform:
    """Ports, MMIO and MSRs as dictionaries; vectors as the test queues them."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.vmpls: list[int] = []
        self.ports: dict[int, int] = {}
        self.mmio: dict[int, int] = {}
        self.msrs: dict[int, int] = {}
        self.vectors: dict[int, list[int]] = {}
        self.apics_off: set[int] = set()
        self.deadline: int | None = None
        self.ticks = 0
        self.on_msr_write: Callable[[int, int, int], None] | None = None
        self.on_tick: Callable[[int], None] | None = None
        self.on_init: Callable[[int], None] | None = None
        self.on_nmi: Callable[[int], None] | None = None
        self.on_sipi: Callable[[int], None] | None = None
        self.on_reset: Callable[[], None] | None = None
        self.on_power_off: Callable[[], None] | None = None
        self.channel = FakeChannel()

    def confine(self, allows: Callable[[int, int], bool], /) -> None:
        self.dma_allows = allows

    def io_read(self, port: int, size: int, vmpl: int, /) -> int:
        self.vmpls.append(vmpl)
        self.log.append(("in", port, size))
        return self.ports.get(port, (1 << 8 * size) - 1)

    def io_write(self, port: int, size: int, value: int, vmpl: int, /) -> None:
        self.vmpls.append(vmpl)
        self.log.append(("out", port, size, value))

    def mmio_read(self, gpa: int, size: int, vcpu: int, /) -> int:
        self.log.append(("mmio read", gpa, size, vcpu))
        return self.mmio.get(gpa, (1 << 8 * size) - 1)

    def mmio_write(self, gpa: int, size: int, value: int, vcpu: int, /) -> None:
        self.log.append(("mmio write", gpa, size, value, vcpu))

    def msr_read(self, vcpu: int, msr: int, /) -> int | None:
        return self.msrs.get(msr)

    def msr_write(self, vcpu: int, msr: int, value: int, /) -> bool:
        self.log.append(("wrmsr", vcpu, msr, value))
        if self.on_msr_write is not None:
            self.on_msr_write(vcpu, msr, value)
        return msr in self.msrs

    def apic_enabled(self, vcpu: int, /) -> bool:
        return vcpu not in self.apics_off

    def pending_vector(self, vcpu: int, /) -> int | None:
        queue = self.vectors.get(vcpu)
        return queue[0] if queue else None

    def passes_priorities(self, vcpu: int, /) -> bool:
        return False

    def connect_cr8(self, read: Callable[[int], int], write: Callable[[int, int], None], /) -> None:
        self.read_cr8, self.write_cr8 = read, write

    def send_ipi(self, vcpu: int, icr: int, /) -> None:
        self.log.append(("ipi", vcpu, icr))

    def acknowledge(self, vcpu: int, /) -> int:
        self.log.append(("ack", vcpu))
        return self.vectors[vcpu].pop(0)

    def next_deadline_ns(self, vcpu: int, /) -> int | None:
        return self.deadline

    def tick(self, now_ns: int, /) -> None:
        self.ticks += 1
        if self.deadline is not None and now_ns >= self.deadline:
            self.deadline = None
            if self.on_tick is not None:
                self.on_tick(now_ns)

    def dump(self) -> dict[str, Any]:
        return {"ticks": self.ticks}

    def load(self, state: dict[str, Any], /) -> None:
        self.ticks = state["ticks"]


FIELDS = {
    "rax": 0x1F8,
    "rcx": 0x308,
    "rdx": 0x310,
    "rbx": 0x318,
    "code": 0x390,
    "info1": 0x398,
    "info2": 0x3A0,
    "scratch": 0x3A8,
    "xcr0": 0x3E8,
}


class Guest:
    """A hypervisor over the fakes, and the guest's side of the GHCB."""

    def __init__(self, vcpus: int = 1, *, monitor: bool = False, **options: Any) -> None:
        self.machine = FakeMachine()
        self.platform = FakePlatform()
        self.host = Hypervisor(self.machine, self.platform, vcpus, monitor=monitor, **options)
        self.view = self.machine.view
        for page in range(len(self.view.private)):
            self.view.private[page] = True
        self.view.private[GHCB // PAGE] = False
        self.host.vcpus[0].set_vmsa(0, VMSA).ghcb = GHCB
        self.host.vcpus[0].start(0)

    def call_msr(self, value: int) -> int:
        """One request of the MSR protocol by VCPU 0's current level; the MSR afterwards."""
        context = self.host.vcpus[0].current
        assert context is not None

        def step(vmcb: Vmcb) -> None:
            vmcb.ghcb_gpa = value

        self._one_exit(step)
        msr: int = context.vmcb.ghcb_gpa
        return msr

    def call(
        self,
        code: int,
        info1: int = 0,
        info2: int = 0,
        *,
        data: bytes = b"",
        valid: tuple[str, ...] | None = None,
        version: int = 2,
        usage: int = 0,
        cpl: int | None = None,
        **registers: int,
    ) -> dict[str, int]:
        """One request in the GHCB page; the answer's valid fields. A scratch area is the shared buffer."""
        fields = {"code": code, "info1": info1, "info2": info2, **registers}
        if data and "scratch" not in fields:
            fields["scratch"] = BUFFER
        page = bytearray(PAGE)
        page[0x800 : 0x800 + len(data)] = data
        bitmap = 0
        for name, value in fields.items():
            struct.pack_into("<Q", page, FIELDS[name], value)
            if valid is None or name in valid:
                bitmap |= 1 << FIELDS[name] // 8
        if cpl is not None:
            page[0xCB] = cpl
            bitmap |= 1 << 0xCB // 8
        page[0x3F0:0x400] = bitmap.to_bytes(16, "little")
        struct.pack_into("<HI", page, 0xFFA, version, usage)
        self.view.memory[GHCB : GHCB + PAGE] = page

        def step(vmcb: Vmcb) -> None:
            vmcb.ghcb_gpa = GHCB

        self._one_exit(step)
        return self.answer()

    def answer(self) -> dict[str, int]:
        """The valid fields of the GHCB page."""
        page = self.view.memory[GHCB : GHCB + PAGE]
        bitmap = int.from_bytes(page[0x3F0:0x400], "little")
        return {
            name: struct.unpack_from("<Q", page, offset)[0]
            for name, offset in FIELDS.items()
            if bitmap >> offset // 8 & 1
        }

    def buffer(self, length: int) -> bytes:
        return bytes(self.view.memory[BUFFER : BUFFER + length])

    def _one_exit(self, step: Step) -> None:
        vcpu = self.host.vcpus[0]
        assert vcpu.current is not None
        vcpu.state = RunState.RUNNABLE
        vmsa = vcpu.current.vmcb.vmsa_pa
        self.machine.script(vmsa, step)
        self.host.run(lambda: not self.machine.scripts[vmsa])


OK = {"info1": 0, "info2": 0}


def malformed(reason: GhcbReason) -> dict[str, int]:
    return {"info1": 2, "info2": int(reason)}


def three_vcpus() -> Guest:
    guest = Guest(3, monitor=True)
    guest.host.vcpus[0].set_vmsa(3, 0x2000).ghcb = GHCB
    return guest
