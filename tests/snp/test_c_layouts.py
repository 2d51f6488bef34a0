# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's C headers and the Python definitions of the same structures and numbers agree."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

import veil.snp
from tests.c_declarations import Declarations
from veil.snp import rmp
from veil.snp.exit_codes import ExitCode
from veil.snp.layouts import Vmcb, Vmsa, VmsaSegment
from veil.snp.rmp import EntryFlag, Permission, RmpResult

ENGINE = Path(veil.snp.__file__).parent / "engine"
HEADERS = Declarations.of((ENGINE / name).read_text() for name in ("vmsa.h", "rmp.h"))


@pytest.mark.parametrize(
    ("name", "layout"), [("veil_vmsa_segment", VmsaSegment), ("veil_vmsa", Vmsa), ("veil_vmcb", Vmcb)]
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
    "VEIL_RMP_VMPLS": 4,
}


def test_numbers_of_the_rmp() -> None:
    """Of the mask and of macros with arguments no Python repeats anything."""
    said = {name: value for name, value in HEADERS.numbers.items() if name.startswith("VEIL_RMP_")}
    said.pop("VEIL_RMP_FAULT_MASK", None)
    assert said == NUMBERS


def test_exit_codes() -> None:
    said = {name: value for name, value in HEADERS.numbers.items() if name.startswith("VEIL_EXIT_")}
    assert said == {name: ExitCode[name.removeprefix("VEIL_EXIT_")] for name in said}
    assert len(said) >= 6
