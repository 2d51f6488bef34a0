# SPDX-License-Identifier: GPL-2.0-or-later
"""The SEV-SNP machine: memory, RMP, cores and secure processor, and VMRUN, which the host calls."""

from __future__ import annotations

import ctypes
import json
import struct
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from veil.formats.domains import MONITOR_VMPL, SERVICE_VMPL
from veil.formats.nested_faults import NestedFault
from veil.formats.page_sizes import PAGE_SIZE, PAGE_SIZE_2M
from veil.formats.registers import Efer
from veil.snp._engine import Engine, EngineCounters
from veil.snp.cpuid import (
    PROCESSOR_SIGNATURE,
    CpuFeature,
    CpuidEntryValues,
    check_features,
    cpuid_entries,
    feature_bits,
    launch_features,
)
from veil.snp.debug_stops import MAX_WATCHPOINTS, DebugStop, StopReason, Watchpoint
from veil.snp.domain_switches import DomainSwitches
from veil.snp.encryption import MemoryEncryption
from veil.snp.errors import RmpViolation, SnapshotError, SnpError
from veil.snp.exit_codes import ExitCode
from veil.snp.guest_bus import GuestBus
from veil.snp.host_view import HostView
from veil.snp.hosted import (
    HOSTED_MAGIC,
    HostedCpu,
    HostedHeader,
    HostedProgram,
    InstalledProgram,
    load_installed,
    load_program,
)
from veil.snp.layouts import Vmcb, Vmsa
from veil.snp.memory import Memory, address_space, check_far_memory, holes, ram_ranges
from veil.snp.rmp import FAULT_GP, FAULT_NOT_VALIDATED, NO_VMSA, VMSA_WORD, Rmp
from veil.snp.secure_processor import SecureProcessor
from veil.snp.snapshot_file import Snapshot, from_plain, read_snapshot, to_plain, write_snapshot
from veil.snp.snapshot_values import UNUSABLE, explained, integer
from veil.snp.view import View

if TYPE_CHECKING:
    from veil.snp.endorsement import Endorsement

__all__ = ["HOSTED_VMPLS", "MAX_FIRMWARE_SIZE", "DomainSwitches", "Machine"]

_SVME = int(Efer.SVME)
#: The levels whose programs are Python.
HOSTED_VMPLS = (MONITOR_VMPL, SERVICE_VMPL)
#: and where the devices of a board are no firmware can lie
MAX_FIRMWARE_SIZE = 16 << 20
_RIP = Vmsa.rip.offset
_RDI = Vmsa.rdi.offset
_VMPL = Vmsa.vmpl.offset
_EFER = Vmsa.efer.offset
#: what an access through present page tables reports
_THROUGH_TABLES = int(NestedFault.PRESENT | NestedFault.USER | NestedFault.FINAL)
_EXIT_CODE = Vmsa.guest_exit_code.offset
_VMGEXIT = int(ExitCode.VMGEXIT)
_U64 = struct.Struct("<Q")
#: EXITCODE, EXITINFO1, EXITINFO2 and EXITINTINFO, which follow each other in a VMCB
_EXIT = struct.Struct("<QQQQ")
_EXIT_AT: int = vars(Vmcb)["exit_code"].offset
_address = ctypes.addressof
_now_ns = time.perf_counter_ns


@dataclass(slots=True)
class _HostedContext:
    cpu: HostedCpu
    program: HostedProgram
    header_gpa: int
    steps: Generator[None, None, None] | None
    resumed: bool = False
    """its state came from a file"""


class Machine:
    """One SEV-SNP guest's worth of hardware. Close it, or use it as a context manager."""

    def __init__(
        self,
        memory_size: int,
        *,
        firmware_size: int = 0,
        far_memory: tuple[int, int] | None = None,
        endorsement: Callable[[], Endorsement] | None = None,
        report_version: int = 3,
        hosted: bool = False,
        cpu_features: Collection[CpuFeature] = (),
    ) -> None:
        """`memory_size` in bytes, a multiple of 2 MiB; `firmware_size` bytes of RAM more lie below 4 GiB.
        `far_memory`: (GPA, length) of more by itself, whole 2 MiB above all other RAM and below MAX_FAR_MEMORY. Such a
        machine cannot be saved.

        `hosted`: VMSAs of VMPL 0 and 1 that begin at a hosted program are run by Python, in this process. That is for
        images that the caller made: whatever else is at VMPL 0 could have any Python run.

        `endorsement` gives the secure processor its keys when they are first needed (made then without it).
        `report_version` is that of attestation reports: 2, 3 or 5. `cpu_features`: what the processor has beside what
        it always has.
        """
        check_features(cpu_features)
        if memory_size <= 0 or memory_size % PAGE_SIZE_2M:
            raise SnpError(f"memory must be a positive multiple of 2 MiB, not {memory_size} bytes")
        if not 0 <= firmware_size <= MAX_FIRMWARE_SIZE or firmware_size % PAGE_SIZE:
            raise SnpError(
                f"firmware has at most {MAX_FIRMWARE_SIZE >> 20} MiB, whole pages, not {firmware_size} bytes"
            )
        pieces = ram_ranges(memory_size, firmware_size, far_memory)
        if far_memory is not None:
            check_far_memory(far_memory, address_space(pieces[:-1]))
        memory = Memory(address_space(pieces))
        self.runs_hosted = hosted
        self._build(
            (memory_size, firmware_size, far_memory),
            memory,
            MemoryEncryption(),
            endorsement,
            cpu_features,
            report_version,
        )

    def _build(
        self,
        sizes: tuple[int, int, tuple[int, int] | None],
        memory: Memory,
        encryption: MemoryEncryption,
        endorsement: Callable[[], Endorsement] | None,
        cpu_features: Collection[CpuFeature],
        report_version: int = 3,
    ) -> None:
        self.cpu_features = frozenset(cpu_features)
        self.memory_size, self.firmware_size, self.far_memory = sizes
        self.memory = memory
        gaps = holes(self.ram_ranges)
        self.rmp = Rmp(memory.pages, gaps)
        self.encryption = encryption
        self._code_map = np.zeros(memory.pages, dtype=np.uint8)
        self._engine = Engine(memory, self.rmp, self._code_map.ctypes.data, gaps, feature_bits(cpu_features))
        self._bus = GuestBus(
            memory, self.rmp, encryption, code_map=self._code_map, on_code_write=self._engine.code_written
        )
        self.secure_processor = SecureProcessor(
            memory,
            self.rmp,
            endorsement=endorsement,
            cpuid_signature=PROCESSOR_SIGNATURE,
            report_version=report_version,
        )
        self._hosted: dict[int, _HostedContext] = {}
        self._machine_code: set[int] = set()
        #: how long hosted code has run, in nanoseconds by the clock
        self.hosted_ns = 0
        self._programs: dict[int, HostedProgram] = {}
        self._vmrun = self._engine.vmrun_function
        self._run_switching = self._engine.run_switching_function
        self._handle = self._engine.handle

    def close(self) -> None:
        """Give everything back."""
        self._engine.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ram_ranges(self) -> list[tuple[int, int]]:
        """(GPA, length) of each piece of RAM."""
        return ram_ranges(self.memory_size, self.firmware_size, self.far_memory)

    @property
    def counters(self) -> EngineCounters:
        """What the core counted, live."""
        return self._engine.counters

    def view(self, *, vmpl: int, cpl: int = 0) -> View:
        """Memory as code of that level may use it."""
        return View(self._bus, vmpl, cpl)

    def host_view(self) -> HostView:
        """Memory as the host may use it."""
        return HostView(self._bus)

    def cpuid_entries(self, vcpus: int = 1) -> list[CpuidEntryValues]:
        """The processor's CPUID table for a launch."""
        return cpuid_entries(self._engine, vcpus, self.cpu_features)

    @property
    def sev_features(self) -> int:
        """What the VMSAs of a launch have of SEV_FEATURES."""
        return launch_features(self.cpu_features)

    def tsc(self) -> int:
        """The guest's time stamp counter, in nanoseconds (1 GHz)."""
        return self._engine.read_tsc()

    def set_tsc(self, value: int) -> None:
        """Let the time stamp counter go on from a value."""
        self._engine.set_tsc(value)

    def set_pause_limit(self, limit: int) -> None:
        """PAUSE exits to the host after this many; 0 for never (a single VCPU has nobody to wait for)."""
        self._engine.set_pause_limit(limit)

    def set_single_step(self, on: bool) -> None:
        """VMRUN of machine code ends with INTR after each instruction, and after the delivery of each event.

        A host can have that of any guest by its timer (SEV-Step); string instructions end after each element.
        """
        self._engine.set_single_step(on)

    def set_breakpoints(self, addresses: Sequence[int]) -> None:
        """VMRUN of machine code stops in front of the instructions at these virtual addresses, in every context.

        These are all that there are from now on. Single steps meet none.
        """
        self._engine.set_breakpoints(addresses)

    def set_watchpoints(self, watchpoints: Sequence[Watchpoint]) -> None:
        """The same in front of instructions that make such accesses. Raises SnpError for more than MAX_WATCHPOINTS."""
        if len(watchpoints) > MAX_WATCHPOINTS or any(item.length < 1 for item in watchpoints):
            raise SnpError(f"at most {MAX_WATCHPOINTS} watchpoints, of a byte or more")
        self._engine.set_watchpoints(watchpoints)

    def debug_stop(self) -> DebugStop | None:
        """Why the last VMRUN ended with INTR, if it was for a debugger; asked for again it is None."""
        reason, address = self._engine.debug_stop()
        return DebugStop(StopReason(reason), address) if reason else None

    def kick(self) -> None:
        """End the running VMRUN soon; safe from another thread or a signal handler."""
        self._engine.kick()

    def new_vmcb(self) -> Vmcb:
        """A control area for a VCPU of one VMPL; the caller fills in `vmsa_pa`."""
        return Vmcb()

    # VMRUN

    def vmrun(self, vmcb: Vmcb, deadline_ns: int = 0) -> None:
        """VMRUN: enter the VMSA at `vmcb.vmsa_pa`; on return the VMCB holds the exit.

        At `deadline_ns` of CLOCK_MONOTONIC (0: never) the exit is INTR, as if a timer of the host had fired.
        """
        gpa = vmcb.vmsa_pa
        if gpa in self._machine_code:
            self._vmrun(self._handle, _address(vmcb), deadline_ns)
            return
        context = self._hosted.get(gpa) or self._first_run(vmcb)
        if context is None:
            self._vmrun(self._handle, _address(vmcb), deadline_ns)
        else:
            self._run_hosted(vmcb, context)

    def vmrun_switching(self, vmcb: Vmcb, policy: DomainSwitches, deadline_ns: int = 0) -> int:
        """The same, and on from there by `policy`: between its kernel and contexts of VMPL 2, until another exit.

        Returns the VMSA whose VMCB holds that exit.
        """
        if vmcb.vmsa_pa in self._machine_code:
            left: int = self._run_switching(self._handle, _address(vmcb), policy.address, deadline_ns)
            return left
        self.vmrun(vmcb, deadline_ns)
        return vmcb.vmsa_pa

    def new_switches(self) -> DomainSwitches:
        """For a host that leaves its plain domain switches to the machine."""
        return DomainSwitches(self.memory.pages)

    def _runnable(self, gpa: int) -> bool:
        # Bit 12 of EFER, SVME; looked at first, for most VMSAs have it.
        return self.rmp.is_vmsa(gpa) and bool(self.memory.mapping[gpa + _EFER + 1] & _SVME >> 8)

    def _first_run(self, vmcb: Vmcb) -> _HostedContext | None:
        """Decide once for each VMSA who runs it."""
        gpa = vmcb.vmsa_pa
        if not self._runnable(gpa):
            return None
        vmpl = self.memory.buf[gpa + _VMPL]
        entry = self._read_u64(gpa + _RIP)
        if not self.runs_hosted or vmpl not in HOSTED_VMPLS or not self._is_hosted_entry(entry, vmpl):
            self._machine_code.add(gpa)
            return None
        if self._allowed is None:
            context = self._hosted_context(vmcb, entry, vmpl, load_program)
        else:
            with explained(f"the snapshot's program at {entry:#x} cannot be run"):
                context = self._hosted_context(vmcb, entry, vmpl, self._load_installed)
            context.resumed = True
        context.steps = context.program.run(context.cpu)
        return context

    def _load_installed(self, archive: bytes, entry: str) -> HostedProgram:
        return load_installed(archive, entry, self._allowed or {})

    def _is_hosted_entry(self, entry: int, vmpl: int) -> bool:
        view = self.view(vmpl=vmpl)
        if entry % PAGE_SIZE or entry + PAGE_SIZE > self.memory.size or not view.allows(entry, 1 | 8, PAGE_SIZE):
            return False
        return view.read(entry, len(HOSTED_MAGIC)) == HOSTED_MAGIC

    def _hosted_context(
        self, vmcb: Vmcb, header_gpa: int, vmpl: int, load: Callable[[bytes, str], HostedProgram]
    ) -> _HostedContext:
        view = self.view(vmpl=vmpl)
        header = HostedHeader.from_buffer_copy(view.read(header_gpa, ctypes.sizeof(HostedHeader)))
        program = self._programs.get(header_gpa)
        if program is None:
            archive = view.read(header.archive_gpa, header.archive_length)
            program = self._programs[header_gpa] = load(archive, header.entry.decode("ascii"))
        cpu = HostedCpu(view, vmcb.vmsa_pa, self._read_u64(vmcb.vmsa_pa + _RDI), header, vmcb, self._engine.read_tsc)
        context = self._hosted[vmcb.vmsa_pa] = _HostedContext(cpu, program, header_gpa, None)
        return context

    def _run_hosted(self, vmcb: Vmcb, context: _HostedContext) -> None:
        gpa = context.cpu.vmsa_gpa
        steps = context.steps
        if steps is None or not self._runnable(gpa):
            vmcb.exit_code = ExitCode.INVALID
            return
        state = self.rmp.state
        exit_info_1 = exit_info_2 = 0
        state[VMSA_WORD] = gpa
        begun = _now_ns()
        try:
            next(steps)
            code = _VMGEXIT
            if context.cpu.fault is not None:
                code, exit_info_1, exit_info_2 = _nested_fault(context.cpu.fault)
                context.cpu.fault = None
        except StopIteration:
            context.steps = None
            code = int(ExitCode.SHUTDOWN)
        except RmpViolation as violation:
            # What machine code would have met: a nested page fault that nobody can resolve from outside.
            context.steps = None
            code, exit_info_1, exit_info_2 = _nested_fault(violation)
        except Exception as error:
            context.steps = None
            if not context.resumed:
                raise
            # Its state is what a file said: that it is nonsense may show only now.
            what = f"the snapshot's program at {context.header_gpa:#x}"
            raise SnapshotError(f"{what} cannot go on from its state: {error!r}") from error
        finally:
            state[VMSA_WORD] = NO_VMSA
            self.hosted_ns += _now_ns() - begun
        _EXIT.pack_into(vmcb, _EXIT_AT, code, exit_info_1, exit_info_2, 0)
        _U64.pack_into(self.memory.mapping, gpa + _EXIT_CODE, code)

    def _read_u64(self, gpa: int) -> int:
        value: int = _U64.unpack_from(self.memory.mapping, gpa)[0]
        return value

    def hosted_program(self, vmsa_gpa: int) -> HostedProgram | None:
        """The program that runs a VMSA, for tests and tools that look into it."""
        context = self._hosted.get(vmsa_gpa)
        program = context.program if context else None
        return program.program if isinstance(program, InstalledProgram) else program

    # Snapshots

    def save(self, path: Path, sections: dict[str, bytes] | None = None) -> None:
        """Write everything to a file, with the caller's own sections (the host's state) beside the machine's.

        Call it between two VMRUNs.  VCPU contexts are in their VMSAs; VMCBs are the host's to save.
        """
        if self.far_memory is not None:
            raise SnapshotError(
                f"a machine with memory at {self.far_memory[0]:#x}, far from its other, cannot be saved"
            )
        programs = {gpa: program.save() for gpa, program in self._programs.items()}
        state: dict[str, Any] = {
            "memory_size": self.memory_size,
            "firmware_size": self.firmware_size,
            "cpu_features": sorted(feature.value for feature in self.cpu_features),
            "tsc": self.tsc(),
            "machine_code": sorted(self._machine_code),
            "hosted": {str(gpa): context.header_gpa for gpa, context in self._hosted.items() if context.steps},
            "secure_processor": to_plain(self.secure_processor.dump()),
        }
        own = {
            "machine": json.dumps(state).encode(),
            "encryption": self.encryption.dump(),
            "rmp": self.rmp.dump(),
            **{f"program:{gpa}": data for gpa, data in programs.items()},
        }
        write_snapshot(path, memory=self.memory.buf, sections={**(sections or {}), **own})

    @classmethod
    def restore(
        cls,
        path: Path,
        *,
        endorsement: Callable[[], Endorsement] | None = None,
        programs: Mapping[str, Sequence[str]] | None = None,
    ) -> tuple[Machine, dict[str, bytes]]:
        """A machine from a file, and all its sections. VMSAs that ran hosted code run on with `attach_vmcb`.

        `programs` are those that may do so (entry -> packages); they must be installed as the snapshot has them.
        Raises SnapshotError, whatever the file holds.
        """
        snapshot = read_snapshot(path)
        self = cls.__new__(cls)
        self._engine = None  # type: ignore[assignment]
        try:
            self._load(snapshot, endorsement)
        except UNUSABLE as error:
            if self._engine is not None:
                self._engine.close()
            words = str(error) if isinstance(error, SnpError) else repr(error)
            raise SnapshotError(f"{path} is not a snapshot of this version: {words}") from error
        self._allowed = dict(programs or {})
        self.runs_hosted = True
        return self, snapshot.sections

    def _load(self, snapshot: Snapshot, endorsement: Callable[[], Endorsement] | None) -> None:
        state = from_plain(json.loads(snapshot.sections["machine"]))
        memory_size = integer(state["memory_size"], "memory size")
        firmware_size = integer(state["firmware_size"], "firmware's size")
        if firmware_size % PAGE_SIZE or firmware_size > MAX_FIRMWARE_SIZE:
            raise SnapshotError(f"no firmware has {firmware_size} bytes")
        sizes = (memory_size, firmware_size, None)
        # The engine and its tables are as large as this says: they must not reach past the mapping.
        if memory_size % PAGE_SIZE_2M or not memory_size or address_space(ram_ranges(*sizes)) != snapshot.memory_size:
            raise SnapshotError(f"it holds {snapshot.memory_size} bytes of memory for a machine with {memory_size}")
        encryption = MemoryEncryption.load(snapshot.sections["encryption"])
        tsc = integer(state["tsc"], "time stamp counter")
        self._machine_code = {integer(gpa, "VMSA's address") for gpa in state["machine_code"]}
        self._saved_hosted = {
            int(gpa): integer(header, "hosted program's address") for gpa, header in state["hosted"].items()
        }
        self._saved_programs = {
            int(name.removeprefix("program:")): data
            for name, data in snapshot.sections.items()
            if name.startswith("program:")
        }
        machine_code = self._machine_code
        features = [CpuFeature(value) for value in state["cpu_features"]]
        check_features(features)
        self._build(sizes, snapshot.map_memory(), encryption, endorsement, features)
        self._machine_code = machine_code
        self.rmp.load(snapshot.sections["rmp"])
        # Hosted code knows that it was restored, and takes new keys; a kernel at VMPL 0 would not.
        self.secure_processor.load(state["secure_processor"], new_keys=bool(state["hosted"]))
        self.set_tsc(tsc)

    def attach_vmcb(self, vmcb: Vmcb) -> None:
        """After `restore`: tell the machine a VMCB of the host; hosted code on its VMSA resumes.

        Raises SnapshotError: no sources but the installed ones are run, whatever the snapshot's memory holds.
        """
        header_gpa = self._saved_hosted.get(vmcb.vmsa_pa)
        if header_gpa is None:
            return
        with explained(f"the snapshot's program at {header_gpa:#x} cannot be resumed"):
            self._resume_hosted(vmcb, header_gpa)

    def _resume_hosted(self, vmcb: Vmcb, header_gpa: int) -> None:
        if not self.rmp.is_vmsa(vmcb.vmsa_pa):
            raise SnapshotError(f"the snapshot has no VMSA at {vmcb.vmsa_pa:#x}")
        vmpl = self.memory.buf[vmcb.vmsa_pa + _VMPL]
        if vmpl not in HOSTED_VMPLS or not self._is_hosted_entry(header_gpa, vmpl):
            raise SnapshotError(f"the snapshot has no hosted program at {header_gpa:#x}")
        fresh = header_gpa not in self._programs
        context = self._hosted_context(vmcb, header_gpa, vmpl, self._load_installed)
        context.resumed = True
        if fresh:
            if header_gpa not in self._saved_programs:
                raise SnapshotError("the snapshot lacks a hosted program's state")
            context.program.restore(self._saved_programs[header_gpa])
        context.steps = context.program.resume(context.cpu)

    _saved_hosted: dict[int, int]
    _saved_programs: dict[int, bytes]
    #: of a snapshot: what of its programs may run (entry -> packages); None on a machine whose image the caller made
    _allowed: Mapping[str, Sequence[str]] | None = None


def _nested_fault(violation: RmpViolation) -> tuple[int, int, int]:
    """EXITCODE, EXITINFO1 and EXITINFO2."""
    return int(ExitCode.NPF), violation.fault & ~(FAULT_GP | FAULT_NOT_VALIDATED) | _THROUGH_TABLES, violation.gpa
