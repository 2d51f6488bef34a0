# SPDX-License-Identifier: GPL-2.0-or-later
"""The C engine's functions (engine/api.h) with their types."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from typing import Any

from veil.formats.page_sizes import PAGE_SIZE
from veil.snp import _engine_library
from veil.snp.errors import SnpError
from veil.snp.memory import Memory
from veil.snp.rmp import Rmp

__all__ = ["COUNTER_NAMES", "Engine", "EngineCounters", "SwitchPolicy", "WatchedRange"]

_U64 = ctypes.c_uint64
_U64_MAX = (1 << 64) - 1
_PTR = ctypes.c_void_p


COUNTER_NAMES = (
    "vmruns",
    "tlb_fills",
    "nested_faults",
    "redelivered",
    "vc",
    "flushes",
    "full_flushes",
    "cr3_loads",
    "page_flushes",
    "tlb_conflicts",
    "tlb_resizes",
    "loop_entries",
    "block_lookups",
    "blocks_made",
    "code_stores",
    "events",
    "switches",
    "instructions",
)


class EngineCounters(ctypes.Structure):
    """`struct veil_engine_counters`: totals since the engine was made."""

    _fields_ = [(name, _U64) for name in COUNTER_NAMES]

    vmruns: int
    tlb_fills: int
    nested_faults: int
    redelivered: int
    vc: int
    flushes: int
    full_flushes: int
    cr3_loads: int
    page_flushes: int
    tlb_conflicts: int
    tlb_resizes: int
    loop_entries: int
    block_lookups: int
    blocks_made: int
    code_stores: int
    events: int
    switches: int
    instructions: int


#: `VEIL_MAX_HOLES`
_MAX_HOLES = 2
#: `VEIL_MAX_HELD`
_MAX_HELD = 63


class SwitchPolicy(ctypes.Structure):
    """`struct veil_switch_policy`: domain switches that a host has the engine do by itself."""

    _fields_ = [
        ("kernel", _U64),
        ("contexts", _U64),
        ("pages", _U64),
        ("held_count", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("held", _U64 * _MAX_HELD),
    ]

    kernel: int
    contexts: int
    pages: int
    held_count: int
    held: ctypes.Array[_U64]


class WatchedRange(ctypes.Structure):
    """`struct veil_watchpoint`."""

    _fields_ = [("address", _U64), ("length", _U64), ("kinds", ctypes.c_uint32), ("reserved", ctypes.c_uint32)]


_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "new": ([_PTR, _U64, ctypes.POINTER(_U64), _PTR, _PTR], _PTR),
    "free": ([_PTR], None),
    "vmrun": ([_PTR, _PTR, _U64], None),
    "run_switching": ([_PTR, _PTR, _PTR, _U64], _U64),
    "code_written": ([_PTR, _U64, _U64], None),
    "reset": ([_PTR], None),
    "kick": ([_PTR], None),
    "cpuid": ([_PTR, ctypes.c_uint32, ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint32)], None),
    "set_cpu_features": ([_PTR, ctypes.c_uint32], None),
    "set_tsc_offset": ([_PTR, _U64], None),
    "set_pause_limit": ([_PTR, ctypes.c_uint32], None),
    "set_single_step": ([_PTR, ctypes.c_uint32], None),
    "set_breakpoints": ([_PTR, ctypes.POINTER(_U64), ctypes.c_uint32], None),
    "set_watchpoints": ([_PTR, ctypes.POINTER(WatchedRange), ctypes.c_uint32], None),
    "debug_stop": ([_PTR, ctypes.POINTER(_U64)], ctypes.c_uint32),
    "counters": ([_PTR], ctypes.POINTER(EngineCounters)),
}


class Engine:
    """One x86-64 core that runs the context of one VMSA at a time."""

    def __init__(
        self, memory: Memory, rmp: Rmp, code_map_address: int, holes: Sequence[range], cpu_features: int = 0
    ) -> None:
        """`holes`: the pages that are no RAM, two at most. `cpu_features`: bits of VEIL_CPU_."""
        library = _engine_library.library()
        for name, (argtypes, restype) in _SIGNATURES.items():
            function = getattr(library, f"veil_engine_{name}")
            function.argtypes = argtypes
            function.restype = restype
        self._library = library
        # The engine keeps pointers into these.
        self._keep = (memory, rmp)
        edges = [edge * PAGE_SIZE for hole in holes for edge in (hole.start, hole.stop)]
        edges += [memory.size] * (2 * _MAX_HOLES - len(edges))
        self._handle: int | None = library.veil_engine_new(
            memory.address, memory.size, (_U64 * len(edges))(*edges), rmp.address, code_map_address
        )
        if not self._handle:
            raise SnpError("the CPU engine cannot start: not enough memory")
        self.vmrun_function = library.veil_engine_vmrun
        self.run_switching_function = library.veil_engine_run_switching
        self.handle: int = self._handle
        self.set_tsc(0)
        library.veil_engine_set_cpu_features(self.handle, cpu_features)

    def close(self) -> None:
        """Free the core; nothing else may be called after it."""
        if self._handle:
            self._library.veil_engine_free(self._handle)
            self._handle = None

    def code_written(self, gpa: int, length: int) -> None:
        """Drop the translations of a range that somebody else wrote."""
        self._library.veil_engine_code_written(self.handle, gpa, length)

    def reset(self) -> None:
        """Drop everything derived from memory."""
        self._library.veil_engine_reset(self.handle)

    def kick(self) -> None:
        """Make a running VMRUN end soon with INTR; safe from another thread and from a signal handler.

        Also after `close`, of which another thread may not know yet.
        """
        if self._handle:
            self._library.veil_engine_kick(self._handle)

    def cpuid(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        """What the core's own CPUID says: EAX, EBX, ECX, EDX."""
        out = (ctypes.c_uint32 * 4)()
        self._library.veil_engine_cpuid(self.handle, leaf, subleaf, out)
        return out[0], out[1], out[2], out[3]

    def read_tsc(self) -> int:
        """The guest's time stamp counter now."""
        return time.monotonic_ns() + self._tsc_offset & _U64_MAX

    def set_tsc(self, value: int) -> None:
        """Let the guest's time stamp counter go on from here."""
        self._tsc_offset = value - time.monotonic_ns()
        self._library.veil_engine_set_tsc_offset(self.handle, self._tsc_offset & _U64_MAX)

    def set_pause_limit(self, limit: int) -> None:
        """Exit with PAUSE after this many PAUSE instructions; 0: never."""
        self._library.veil_engine_set_pause_limit(self.handle, limit)

    def set_single_step(self, on: bool) -> None:
        """Whether each VMRUN ends with INTR after one instruction or event."""
        self._library.veil_engine_set_single_step(self.handle, int(on))

    def set_breakpoints(self, addresses: Sequence[int]) -> None:
        """Stop in front of the instructions at these virtual addresses."""
        self._library.veil_engine_set_breakpoints(self.handle, (_U64 * len(addresses))(*addresses), len(addresses))

    def set_watchpoints(self, ranges: Sequence[tuple[int, int, int]]) -> None:
        """Stop in front of accesses to these; (virtual address, bytes, bits of READ 1 and WRITE 2)."""
        table = (WatchedRange * len(ranges))(*(WatchedRange(*item, 0) for item in ranges))
        self._library.veil_engine_set_watchpoints(self.handle, table, len(ranges))

    def debug_stop(self) -> tuple[int, int]:
        """Why the last VMRUN stopped (once), and the watchpoint's address."""
        address = _U64()
        return int(self._library.veil_engine_debug_stop(self.handle, ctypes.byref(address))), address.value

    @property
    def counters(self) -> EngineCounters:
        """Live totals."""
        contents: EngineCounters = self._library.veil_engine_counters(self.handle).contents
        return contents
