# SPDX-License-Identifier: GPL-2.0-or-later
"""Machine code of your own on the bare SEV-SNP machine, and a host of your own: for tests of SNP software.

    from veil.bare_metal import BareGuest, ExitCode, assemble

    with BareGuest(assemble("mov eax, 42\\nhlt")) as guest:
        assert guest.run().code == ExitCode.HLT
        assert guest.context(0).registers.rax == 42

The guest begins at VMPL 0, CPL 0, in long mode, at `CODE`. Its memory is its own, validated, and mapped twice: private
at its own address, and shared (C-bit clear) at `SHARED` above it. There is no IDT: an exception is a triple fault, exit
SHUTDOWN, unless the code loads one. Between two runs all of a context is in its VMSA, which `registers` reads and
writes.

A `Host` decides what becomes of exits. This one is honest and of few words; a subclass does what a hostile one would.
`guest.machine`, `guest.host` and `guest.view(vmpl)` are the machine, memory as its host and memory as a VMPL has it:
everything that silicon, host and guest can do is there.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from veil.debugger import Context as DebuggedContext
from veil.debugger import Debugger, Place
from veil.errors import VeilError
from veil.formats.board import C_BIT
from veil.formats.domains import VMPLS
from veil.formats.ghcb import (
    MSR_DATA_SHIFT,
    MSR_ERROR,
    MSR_INFO_MASK,
    MSR_PAGE_OPERATION_SHIFT,
    RUN_VMPL_REFUSED,
    MsrRequest,
    MsrResponse,
    PageOperation,
)
from veil.formats.nested_faults import NestedFault
from veil.formats.page_sizes import PAGE_SIZE, PAGE_SIZE_2M
from veil.formats.page_table_entries import LARGE, PRESENT, USER, WRITABLE
from veil.formats.registers import (
    INIT_FCW,
    RESET_DR6,
    RESET_DR7,
    RESET_MXCSR,
    RESET_PAT,
    RESET_XCR0,
    X87_EMPTY,
    Cr0,
    Cr4,
    Efer,
    Rflags,
)
from veil.private_files import UMASK
from veil.snp import CpuFeature, EntryFlag, ExitCode, HostView, Machine, Permission, RmpResult, SnpError, View
from veil.snp.layouts import EVENT_VALID, SevFeatures, Vmcb, Vmsa, VmsaSegment

__all__ = [
    "CODE",
    "FREE",
    "SHARED",
    "BareGuest",
    "Context",
    "Exit",
    "ExitCode",
    "Host",
    "NestedFault",
    "PageState",
    "Permission",
    "assemble",
]

#: The same memory with the C-bit clear.
SHARED = 1 << 30
#: where the page tables and the GDT are, then VMSAs, one page each
_TABLES, _GDT, _VMSAS = 0x1000, 0x8000, 0x9000
#: where code is put, and the page below which the stack of VCPU 0 begins
CODE, _STACK = 0x10000, 0x80000
#: from here on nobody uses the memory
FREE = 0x100000
_MAX_MEMORY = 1 << 30
_MAX_EXITS = 1000
_TSS = 0x7000


@functools.cache
def assemble(text: str, origin: int = CODE) -> bytes:
    """64-bit machine code from GNU as, in Intel syntax, linked to run at `origin`. Raises VeilError with the line that
    is wrong. (The package binutils must be there.)"""
    with tempfile.TemporaryDirectory() as folder:
        unit, flat = Path(folder) / "code.o", Path(folder) / "code.bin"
        source = f".intel_syntax noprefix\n.code64\n.globl _start\n_start:\n{text}\n"
        for command in (
            ["as", "--64", "-o", str(unit), "-"],
            ["ld", "-Ttext", hex(origin), "--oformat", "binary", "-o", str(flat), str(unit)],
        ):
            try:
                done = subprocess.run(command, input=source, capture_output=True, text=True, check=False, umask=UMASK)
            except FileNotFoundError as error:
                raise VeilError(f"{command[0]} was not found (Debian: apt install binutils)") from error
            if done.returncode:
                raise VeilError(f"{command[0]}: {done.stderr.strip().splitlines()[-1]}")
        return flat.read_bytes()


class PageState(NamedTuple):
    """The RMP's entry of a page."""

    assigned: bool
    validated: bool
    vmsa: bool
    permissions: tuple[Permission, ...]
    """by VMPL"""


@dataclass(frozen=True)
class Exit:
    """A VMRUN came back. The codes are the VMCB's."""

    context: Context
    code: int
    exit_info_1: int
    exit_info_2: int
    exit_int_info: int
    stepped: bool = False
    """`BareGuest.step`: an instruction was executed and the guest was not left for any reason of its own"""

    @property
    def ghcb_msr(self) -> int:
        """What the GHCB MSR holds: the request, if the exit is VMGEXIT."""
        return self.context.vmcb.ghcb_gpa


class _Registers:
    """A VMSA's fields (`veil.snp.layouts.Vmsa`), in the page itself."""

    def __init__(self, machine: Machine, gpa: int) -> None:
        object.__setattr__(self, "_machine", machine)
        object.__setattr__(self, "_gpa", gpa)

    def __getattr__(self, name: str) -> Any:
        return getattr(Vmsa.from_buffer_copy(self._machine.memory.mapping, self._gpa), name)

    def __setattr__(self, name: str, value: Any) -> None:
        vmsa = Vmsa.from_buffer_copy(self._machine.memory.mapping, self._gpa)
        if not hasattr(vmsa, name):
            raise AttributeError(f"a VMSA has no field {name!r}")
        setattr(vmsa, name, value)
        self._machine.memory.mapping[self._gpa : self._gpa + ctypes.sizeof(Vmsa)] = bytes(vmsa)


class Context:
    """A VMSA, and the VMCB by which the host runs it."""

    def __init__(self, machine: Machine, vcpu: int, vmpl: int, vmsa: int, vmcb: Vmcb) -> None:
        self.vcpu = vcpu
        self.vmpl = vmpl
        #: GPA of the VMSA
        self.vmsa = vmsa
        self.vmcb = vmcb
        #: its fields by the names of `veil.snp.layouts.Vmsa`
        self.registers: Any = _Registers(machine, vmsa)


class Host:
    """An honest host that knows what small guests need: the GHCB MSR protocol's requests for features, page state
    changes, GHCB registration and other VMPLs. Everything else ends the run. Override what yours does otherwise."""

    def exit(self, guest: BareGuest, exit: Exit) -> Context | None:
        """What runs next; None: nothing, `BareGuest.run` returns this exit."""
        context = exit.context
        if exit.exit_int_info & EVENT_VALID:
            context.vmcb.event_inj = exit.exit_int_info
        if exit.code == ExitCode.INTR:
            return context
        if exit.code == ExitCode.NPF:
            return self.nested_page_fault(guest, context, exit.exit_info_2, NestedFault(exit.exit_info_1))
        if exit.code == ExitCode.VMGEXIT and exit.ghcb_msr & MSR_INFO_MASK:
            return self.request(guest, context, exit.ghcb_msr)
        return None

    def nested_page_fault(self, guest: BareGuest, context: Context, gpa: int, info: NestedFault) -> Context | None:
        """Splits a 2 MiB entry of the RMP where the guest needs 4 KiB."""
        if info & NestedFault.SIZEM and guest.host.psmash(gpa & -PAGE_SIZE_2M) == RmpResult.SUCCESS:
            return context
        return None

    def request(self, guest: BareGuest, context: Context, request: int) -> Context | None:
        """A request in the GHCB MSR, where the answer goes too."""
        vmcb, code = context.vmcb, request & MSR_INFO_MASK
        if code == MsrRequest.RUN_VMPL:
            return self.run_vmpl(guest, context, request >> 32 & 0xFF)
        if code == MsrRequest.PAGE_STATE_CHANGE:
            private = request >> MSR_PAGE_OPERATION_SHIFT & 0xF == PageOperation.PRIVATE
            done = self.page_state_change(guest, context, request & (1 << 52) - PAGE_SIZE, private)
            vmcb.ghcb_gpa = (0 if done else MSR_ERROR) | MsrResponse.PAGE_STATE_CHANGE
        elif code == MsrRequest.REGISTER_GPA:
            vmcb.ghcb_gpa = request & -PAGE_SIZE | MsrResponse.REGISTER_GPA
        elif code == MsrRequest.HV_FEATURES:
            vmcb.ghcb_gpa = 1 << MSR_DATA_SHIFT | MsrResponse.HV_FEATURES
        else:
            return None
        return context

    def page_state_change(self, guest: BareGuest, context: Context, gpa: int, private: bool) -> bool:
        """Give the guest a page, or take it; False: refused."""
        if guest.host.is_shared(gpa, PAGE_SIZE) != private:
            return True
        return guest.host.rmpupdate(gpa, assigned=private) == RmpResult.SUCCESS

    def run_vmpl(self, guest: BareGuest, context: Context, vmpl: int) -> Context | None:
        """The VCPU goes on at another level."""
        target = guest.contexts.get((context.vcpu, vmpl))
        context.vmcb.ghcb_gpa = RUN_VMPL_REFUSED if target is None else int(MsrResponse.RUN_VMPL)
        return target or context


class BareGuest:
    """A machine with your code in it. Close it, or use it as a context manager."""

    def __init__(
        self,
        code: bytes = b"\xf4",
        *,
        at: int = CODE,
        memory: int = 4 << 20,
        host: Host | None = None,
        cpu_features: Collection[CpuFeature] = (),
    ) -> None:
        """`code` is put at the address `at`, where VCPU 0 begins at VMPL 0. `memory` in bytes, a multiple of 2 MiB, at
        most 1 GiB. Raises SnpError."""
        if not 0 < memory <= _MAX_MEMORY:
            raise SnpError(f"a bare guest has at most {_MAX_MEMORY >> 20} MiB, not {memory} bytes")
        self.machine = Machine(memory, hosted=False, cpu_features=cpu_features)
        #: memory as the host has it, and the host's RMP instructions
        self.host: HostView = self.machine.host_view()
        self.behaviour = host if host is not None else Host()
        #: by (VCPU, VMPL)
        self.contexts: dict[tuple[int, int], Context] = {}
        #: the exits so far, the newest last
        self.exits: list[Exit] = []
        self._vmrun = self.machine.vmrun
        self._next: Context
        top = self.view(0)
        self.host.rmpupdate(0, assigned=True, count=memory // PAGE_SIZE)
        for gpa in range(0, memory, PAGE_SIZE):
            top.pvalidate(gpa)
        self._map(top, memory)
        self.put(at, code)
        self._next = self.add_context(0, rip=at)

    def close(self) -> None:
        """Give everything back."""
        self.machine.close()

    def __enter__(self) -> BareGuest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _map(self, top: View, memory: int) -> None:
        """Pages of 2 MiB: private ones at 0, shared ones at `SHARED`."""
        pml4, pointers, private, shared = (_TABLES + PAGE_SIZE * number for number in range(4))
        link = PRESENT | WRITABLE | USER | C_BIT
        for table, entries in ((pml4, [pointers]), (pointers, [private, shared])):
            top.write_fields(table, [(8 * index, entry | link) for index, entry in enumerate(entries)])
        pages = range(memory // PAGE_SIZE_2M)
        top.write_fields(private, [(8 * page, page * PAGE_SIZE_2M | link | LARGE) for page in pages])
        top.write_fields(shared, [(8 * page, page * PAGE_SIZE_2M | (link & ~C_BIT) | LARGE) for page in pages])
        # Null, code and data of ring 0, data and code of ring 3.
        gdt = (0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF)
        top.write(_GDT, struct.pack("<5Q", *gdt))

    # Memory

    def view(self, vmpl: int) -> View:
        """Memory and RMP instructions as code of a VMPL has them."""
        return self.machine.view(vmpl=vmpl)

    def put(self, gpa: int, data: bytes) -> None:
        """Write to the guest's memory, as its VMPL 0. Raises RmpViolation."""
        self.view(0).write(gpa, data)

    def page(self, gpa: int) -> PageState:
        """What the RMP says of a page."""
        entry = self.machine.rmp.entry(gpa)
        flags = EntryFlag(int(entry["flags"]))
        return PageState(
            EntryFlag.ASSIGNED in flags,
            EntryFlag.VALIDATED in flags,
            EntryFlag.VMSA in flags,
            tuple(Permission(int(rights)) for rights in entry["perms"]),
        )

    def permit(self, gpa: int, vmpl: int, permissions: Permission = Permission.ALL, *, pages: int = 1) -> None:
        """RMPADJUST by VMPL 0, of all these pages but VMSAs. Raises SnpError if it fails."""
        top = self.view(0)
        for page in range(gpa, gpa + pages * PAGE_SIZE, PAGE_SIZE):
            if self.page(page).vmsa:
                continue
            result = top.rmpadjust(page, vmpl=vmpl, permissions=int(permissions))
            if result != RmpResult.SUCCESS:
                raise SnpError(f"RMPADJUST of {page:#x}: {result.name}")

    # Contexts

    def context(self, vmpl: int, vcpu: int = 0) -> Context:
        """The one that there is. Raises KeyError."""
        return self.contexts[vcpu, vmpl]

    def add_context(self, vmpl: int, *, rip: int, vcpu: int = 0, cpl: int = 0) -> Context:
        """A VMSA for a VCPU's level, which begins at `rip`; VMPL 0 made it. Memory is not given to the level:
        `permit` does. Raises SnpError."""
        gpa = _VMSAS + PAGE_SIZE * (vcpu * VMPLS + vmpl)
        if vmpl not in range(VMPLS) or (vcpu, vmpl) in self.contexts or not 0 <= gpa < CODE:
            raise SnpError(f"there can be no further context for VCPU {vcpu}, VMPL {vmpl}")
        vmsa = Vmsa(vmpl=vmpl, cpl=cpl, sev_features=SevFeatures.SNP, rip=rip, cr3=_TABLES)
        vmsa.rsp = _STACK + vcpu * 0x10000 + vmpl * 0x4000
        vmsa.cr0 = Cr0.PE | Cr0.MP | Cr0.ET | Cr0.NE | Cr0.WP | Cr0.PG
        vmsa.cr4 = Cr4.PAE | Cr4.OSFXSR | Cr4.OSXMMEXCPT
        vmsa.efer = Efer.SCE | Efer.LME | Efer.LMA | Efer.NXE | Efer.SVME
        vmsa.rflags = Rflags.ONE
        vmsa.cs = VmsaSegment(0x23 if cpl else 0x08, 0xAFB if cpl else 0xA9B, 0xFFFFFFFF, 0)
        for name in ("ds", "es", "fs", "gs", "ss"):
            setattr(vmsa, name, VmsaSegment(0x1B if cpl else 0x10, 0xCF3 if cpl else 0xC93, 0xFFFFFFFF, 0))
        vmsa.tr, vmsa.ldtr = VmsaSegment(0, 0x8B, 0x67, _TSS), VmsaSegment(0, 0x82, 0, 0)
        vmsa.gdtr = VmsaSegment(0, 0, 0x27, _GDT)
        vmsa.dr6, vmsa.dr7, vmsa.g_pat, vmsa.xcr0 = RESET_DR6, RESET_DR7, RESET_PAT, RESET_XCR0
        vmsa.mxcsr, vmsa.x87_ftw, vmsa.x87_fcw = RESET_MXCSR, X87_EMPTY, INIT_FCW
        top = self.view(0)
        top.write(gpa, bytes(vmsa).ljust(PAGE_SIZE, b"\0"))
        result = top.rmpadjust(gpa, vmpl=max(vmpl, 1), permissions=0, vmsa=True)
        if result != RmpResult.SUCCESS:
            raise SnpError(f"the VMSA at {gpa:#x}: {result.name}")
        vmcb = self.machine.new_vmcb()
        vmcb.vmsa_pa = gpa
        context = self.contexts[vcpu, vmpl] = Context(self.machine, vcpu, vmpl, gpa, vmcb)
        return context

    # Running

    @property
    def next(self) -> Context:
        """What runs next; set it to have another context run."""
        return self._next

    @next.setter
    def next(self, context: Context) -> None:
        self._next = context

    def vmrun(self, context: Context, *, seconds: float = 0) -> Exit:
        """One VMRUN, of which the host learns nothing. After so many seconds (0: never) the exit is INTR."""
        deadline = time.monotonic_ns() + int(seconds * 1e9) if seconds else 0
        self._vmrun(context.vmcb, deadline)
        return self._left(context)

    def run(self, *, seconds: float = 10) -> Exit:
        """Run, and have the host answer exits, until it has nothing run any more. Raises TimeoutError."""
        end = time.monotonic_ns() + int(seconds * 1e9)
        while True:
            self._vmrun(self._next.vmcb, end)
            exit = self._left(self._next)
            if exit.code == ExitCode.INTR and time.monotonic_ns() >= end:
                raise TimeoutError(f"the guest still runs after {seconds} s, at {exit.context.registers.rip:#x}")
            if not self._go_on(exit):
                return exit

    def step(self) -> Exit:
        """One instruction (or the delivery of one event) of what runs next, and the host's answer if that left the
        guest: with `stepped` it did not."""
        context = self._next
        self.machine.set_single_step(True)
        try:
            self._vmrun(context.vmcb, 0)
        finally:
            self.machine.set_single_step(False)
        exit = self._left(context, stepped=self.machine.debug_stop() is not None)
        if not exit.stepped:
            self._go_on(exit)
        return exit

    def _left(self, context: Context, *, stepped: bool = False) -> Exit:
        vmcb = context.vmcb
        exit = Exit(context, vmcb.exit_code, vmcb.exit_info_1, vmcb.exit_info_2, vmcb.exit_int_info, stepped)
        self.exits.append(exit)
        del self.exits[:-_MAX_EXITS]
        return exit

    def _go_on(self, exit: Exit) -> bool:
        chosen = self.behaviour.exit(self, exit)
        if chosen is not None:
            self._next = chosen
        return chosen is not None

    @contextmanager
    def debugger(self, place: str, *, waits: bool = True, say: Callable[[str], None] = print) -> Iterator[Debugger]:
        """Listen for gdb at a port or a socket's path while the block runs the guest; `waits`: nothing runs before gdb
        says so. Raises VeilError."""
        debugger = Debugger(self.machine, self._debugged, Place.parse(place), waits=waits)
        self._vmrun = debugger.machine.vmrun
        try:
            say(f"gdb is listened for: target remote {debugger.address}")
            yield debugger
        finally:
            self._vmrun = self.machine.vmrun
            debugger.close()

    def _debugged(self) -> list[DebuggedContext]:
        return [
            DebuggedContext(vcpu, vmpl, context.vmsa, context is self._next)
            for (vcpu, vmpl), context in sorted(self.contexts.items())
        ]
