# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's C headers and the Python definitions of the same structures and numbers agree."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

import veil.snp
from tests.c_declarations import Declarations
from veil.formats.board import C_BIT, MAX_VCPUS
from veil.formats.domains import ENCLAVE_VMPL, VMPLS
from veil.formats.ghcb import GHCB_MSR, RUN_CONTEXT_SHIFT, MsrResponse, run_vmpl_request
from veil.formats.nested_faults import NestedFault
from veil.formats.page_table_entries import ADDRESS
from veil.snp import rmp
from veil.snp._engine import EngineCounters, SwitchPolicy, WatchedRange
from veil.snp.cpuid import CpuFeature, feature_bits
from veil.snp.debug_stops import MAX_WATCHPOINTS, StopReason, WatchKind
from veil.snp.exit_codes import ExitCode
from veil.snp.layouts import (
    SUPPORTED_FEATURES,
    V_BUSY,
    V_INT_SHADOW,
    V_IRQ,
    V_NMI,
    V_NMI_ENABLE,
    V_NMI_MASK,
    SevFeatures,
    Vmcb,
    Vmsa,
    VmsaSegment,
)
from veil.snp.rmp import EntryFlag, Permission, RmpResult

ENGINE = Path(veil.snp.__file__).parent / "engine"
HEADERS = Declarations.of((ENGINE / name).read_text() for name in ("vmsa.h", "rmp.h", "exits.h", "api.h", "core.h"))


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("veil_vmsa_segment", VmsaSegment),
        ("veil_vmsa", Vmsa),
        ("veil_vmcb", Vmcb),
        ("veil_engine_counters", EngineCounters),
        ("veil_switch_policy", SwitchPolicy),
        ("veil_watchpoint", WatchedRange),
    ],
)
def test_structures(name: str, layout: type[ctypes.Structure]) -> None:
    said = {member: (where.offset, where.size) for member, where in HEADERS.structs[name].items()}
    defined = {item[0]: (getattr(layout, item[0]).offset, getattr(layout, item[0]).size) for item in layout._fields_}
    assert said == defined
    assert HEADERS.sizes[name] == ctypes.sizeof(layout)


NUMBERS = {
    **{f"VEIL_RMP_{flag.name}": int(flag) for flag in EntryFlag},
    **{f"VEIL_RMP_{bit.name}": int(bit) for bit in (*Permission, Permission.ALL) if bit},
    **{f"VEIL_RMP_{code.name}": int(code) for code in RmpResult},
    "VEIL_RMP_FAULT_RMP": rmp.FAULT_RMP,
    "VEIL_RMP_FAULT_ENC": rmp.FAULT_ENC,
    "VEIL_RMP_FAULT_SIZEM": rmp.FAULT_SIZEM,
    "VEIL_RMP_FAULT_VMPL": rmp.FAULT_VMPL,
    "VEIL_RMP_GP": rmp.FAULT_GP,
    "VEIL_RMP_NOT_VALIDATED": rmp.FAULT_NOT_VALIDATED,
    "VEIL_RMP_NO_VMSA": rmp.NO_VMSA,
    "VEIL_RMP_VMPLS": VMPLS,
    "VEIL_RMP_REMEMBERED": rmp.REMEMBERED,
}


def test_numbers_of_the_rmp() -> None:
    """Of the mask, of what only the engine reads, and of macros with arguments no Python repeats anything."""
    said = {name: value for name, value in HEADERS.numbers.items() if name.startswith("VEIL_RMP_")}
    for name in ("VEIL_RMP_FAULT_MASK", "VEIL_RMP_ENDED_EXECUTION", "VEIL_RMP_ENDED_MORE", "VEIL_RMP_ENDED_LEVELS"):
        said.pop(name, None)
    assert said == NUMBERS


def test_exit_codes() -> None:
    said = {name: value for name, value in HEADERS.numbers.items() if name.startswith("VEIL_EXIT_")}
    assert said == {name: ExitCode[name.removeprefix("VEIL_EXIT_")] for name in said}
    assert len(said) >= 6


def test_stops_of_a_debugger() -> None:
    assert HEADERS.numbers["VEIL_MAX_WATCHPOINTS"] == MAX_WATCHPOINTS
    text = (ENGINE / "api.h").read_text()
    order = re.search(r"enum \{ (VEIL_STOP_\w+(?:, VEIL_STOP_\w+)*) \};", text)
    assert order is not None
    assert order[1].split(", ") == [f"VEIL_STOP_{reason.name}" for reason in StopReason]
    kinds = re.findall(r"VEIL_WATCH_(\w+) = (\d)", text)
    assert {name: int(value) for name, value in kinds} == {kind.name: int(kind) for kind in WatchKind}


def test_exit_info_of_a_nested_page_fault() -> None:
    """The bits from RMP on are `VEIL_RMP_FAULT_...`."""
    said = {name: value for name, value in HEADERS.numbers.items() if name.startswith("NPF_")}
    assert said == {name: NestedFault[name.removeprefix("NPF_")] for name in said}
    assert len(said) == 6


def test_bits_of_sev_features() -> None:
    said = {name.removeprefix("VEIL_SEV_"): value for name, value in HEADERS.numbers.items() if "VEIL_SEV" in name}
    assert said == {
        "SNP_ACTIVE": SevFeatures.SNP,
        "RESTRICTED_INJECTION": SevFeatures.RESTRICTED_INJECTION,
        "ALTERNATE_INJECTION": SevFeatures.ALTERNATE_INJECTION,
        "DEBUG_SWAP": SevFeatures.DEBUG_SWAP,
        "SUPPORTED": SUPPORTED_FEATURES,
    }


def test_virtual_interrupts() -> None:
    said = {name.removeprefix("VEIL_"): value for name, value in HEADERS.numbers.items() if "VEIL_V_" in name}
    assert said == {
        "V_IRQ": V_IRQ,
        "V_NMI": V_NMI,
        "V_NMI_MASK": V_NMI_MASK,
        "V_NMI_ENABLE": V_NMI_ENABLE,
        "V_INT_SHADOW": V_INT_SHADOW,
        "V_BUSY": V_BUSY,
    }


def test_features_of_the_processor() -> None:
    said = re.findall(r"VEIL_CPU_(\w+) = (\d+)", (ENGINE / "api.h").read_text())
    assert {name: int(value) for name, value in said} == {
        item.name: feature_bits([item, item]) for item in CpuFeature if feature_bits([item])
    }


def test_what_the_machine_is() -> None:
    assert HEADERS.numbers["VEIL_C_BIT"] == C_BIT
    assert HEADERS.numbers["VEIL_HOSTED_TABLES_VMPL"] == ENCLAVE_VMPL
    # A host has one VCPU that runs, and room for all the others.
    assert HEADERS.numbers["VEIL_MAX_HELD"] == MAX_VCPUS - 1


def test_domain_switches() -> None:
    """What the engine does for a host is what the host would do: the same requests, the same answer."""
    numbers = Declarations.of([(ENGINE / "switch.c").read_text()]).numbers
    assert numbers["RUN_VMPL_2"] == run_vmpl_request(ENCLAVE_VMPL)
    assert numbers["RUN_VMPL_DONE"] == MsrResponse.RUN_VMPL
    assert numbers["CONTEXT_SHIFT"] == RUN_CONTEXT_SHIFT


def test_registers_of_the_ghcb() -> None:
    assert Declarations.of([(ENGINE / "intercepts.c").read_text()]).numbers["MSR_GHCB"] == GHCB_MSR


def test_page_tables() -> None:
    numbers = Declarations.of([(ENGINE / "mmu.c").read_text()]).numbers
    assert numbers["ADDRESS_MASK"] == ADDRESS
