# SPDX-License-Identifier: GPL-2.0-or-later
"""All of the evaluation of VeilS-ENC, in one guest."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.enclaves.calls import measure_calls
from bench.enclaves.guest import EnclaveGuest, boot_guest
from bench.enclaves.instructions import count_instructions
from bench.enclaves.making import measure_making, measure_ring
from bench.enclaves.paging import measure_paging
from bench.enclaves.programs import measure_computer, measure_programs, program_files
from bench.enclaves.report import EnclaveReport
from bench.micro import measure_calls as measure_transitions
from veil.cache import Cache

__all__ = ["PARTS", "measure_enclaves"]

#: so many enclaves at once
_MEMBERS = 200
PARTS = ("switches", "calls", "instructions", "making", "paging", "ring", "programs")


def measure_enclaves(
    say: Callable[[str], None], *, short: bool = False, parts: Sequence[str] = PARTS, only: Sequence[str] = ()
) -> EnclaveReport:
    """`short`: one turn of each. `parts`: what to measure. `only`: words in names of programs."""
    report = EnclaveReport()
    turns = 1 if short else 7
    with tempfile.TemporaryDirectory(prefix="veil-bench-") as name:
        directory = Path(name)
        if "switches" in parts:
            say("domain switches")
            report.switches = [item for item in measure_transitions(directory) if "VMPL 3 -> 2" in item.name]
        if "instructions" in parts:
            say("instructions")
            report.instructions = count_instructions()
        if not {"calls", "making", "paging", "ring", "programs"} & set(parts):
            return report
        files = program_files(Cache()) if "programs" in parts else {}
        say("booting the guest")
        with boot_guest(files) as vm:
            guest = EnclaveGuest(vm)
            if "calls" in parts:
                report.calls = measure_calls(guest, directory, 30 if short else 200, 1 if short else 3, say)
            if "making" in parts:
                report.making = measure_making(guest, directory, 1 if short else 3, say)
            if "paging" in parts:
                report.paging = measure_paging(guest, directory, say, 1 if short else 3)
            if "ring" in parts:
                say(f"{_MEMBERS} enclaves")
                report.ring = measure_ring(guest, directory, _MEMBERS, 5 if short else 20)
            if "programs" in parts:
                report.programs = measure_programs(guest, directory, turns, say, only)
                say("programs without a guest")
                measure_computer(report.programs, files, directory, turns)
    return report
