# SPDX-License-Identifier: GPL-2.0-or-later
"""The silicon: memory, RMP, VMSAs, instructions, the CPU engine, the secure processor, snapshots.

    with Machine(512 << 20) as machine:
        host = machine.host_view()

Layouts of the specifications are in `veil.snp.layouts`; the chip's keys in `veil.snp.endorsement`.
"""

from veil.snp._engine import COUNTER_NAMES, EngineCounters
from veil.snp._engine_library import build_engine, engine_at_hand
from veil.snp.cpuid import CpuFeature, CpuidEntryValues, check_features
from veil.snp.debug_stops import MAX_WATCHPOINTS, DebugStop, StopReason, WatchKind, Watchpoint
from veil.snp.errors import EngineBuildError, LaunchError, RmpViolation, SnapshotError, SnpError
from veil.snp.exit_codes import ExitCode
from veil.snp.guest_requests import MODEL_TCB
from veil.snp.host_view import HostView
from veil.snp.hosted import HostedCpu, HostedProgram
from veil.snp.machine import HOSTED_VMPLS, Machine
from veil.snp.memory import MAX_FAR_MEMORY, address_space, ram_ranges
from veil.snp.rmp import EntryFlag, PageSize, Permission, PvalidateResult, Rmp, RmpqueryResult, RmpResult
from veil.snp.secure_processor import PageType, SecureProcessor, launch_digest
from veil.snp.view import View

__all__ = [
    "COUNTER_NAMES",
    "HOSTED_VMPLS",
    "MAX_FAR_MEMORY",
    "MAX_WATCHPOINTS",
    "MODEL_TCB",
    "CpuFeature",
    "CpuidEntryValues",
    "DebugStop",
    "EngineBuildError",
    "EngineCounters",
    "EntryFlag",
    "ExitCode",
    "HostView",
    "HostedCpu",
    "HostedProgram",
    "LaunchError",
    "Machine",
    "PageSize",
    "PageType",
    "Permission",
    "PvalidateResult",
    "Rmp",
    "RmpResult",
    "RmpViolation",
    "RmpqueryResult",
    "SecureProcessor",
    "SnapshotError",
    "SnpError",
    "StopReason",
    "View",
    "WatchKind",
    "Watchpoint",
    "address_space",
    "build_engine",
    "check_features",
    "engine_at_hand",
    "launch_digest",
    "ram_ranges",
]
