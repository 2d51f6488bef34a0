# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel's image says of where it puts modules."""

from __future__ import annotations

import pytest

from tests.services.kci.modules.made_module import MadeModule
from tests.services.kci.small_kernel import BASE, DATA, SmallKernel
from veil.services.kci.errors import ImageError
from veil.services.kci.modules import ModuleSpace
from veil.services.kci.modules.elf import ModuleElf
from veil.services.kci.modules.layout import RO_AFTER_INIT, lay_out

NAMES = (".data..ro_after_init", "__jump_table", ".static_call_sites")


def _kernel(*names: str) -> SmallKernel:
    """With a table of names, as Linux has since 6.16."""
    kernel = SmallKernel()
    kernel.symbols |= {"__per_cpu_end": BASE + 0x1F000, "_end": BASE + 0x20000}
    if names:
        kernel.symbols["ro_after_init"] = DATA + 0x100
    for number, name in enumerate(names):
        at = 0x200 + 0x40 * number
        kernel.data[at : at + len(name)] = name.encode()
        kernel.word(0x100 + 8 * number, DATA + at)
    kernel.symbols["behind"] = DATA + 0x180
    return kernel


def test_sections_that_are_read_only_after_init() -> None:
    assert ModuleSpace.of_kernel(_kernel().image()).later == RO_AFTER_INIT
    assert ModuleSpace.of_kernel(_kernel(*NAMES).image()).later == set(NAMES)
    with pytest.raises(ImageError, match="not sound"):
        ModuleSpace.of_kernel(_kernel("__jump_table").image())


def test_where_they_are() -> None:
    elf = ModuleElf(MadeModule().with_section(".static_call_sites", data=bytes(8), flags=3).build())
    for later, kind in ((RO_AFTER_INIT, "DATA"), (NAMES, "RO_AFTER_INIT")):
        offsets = lay_out(elf, later).offsets
        (found,) = (place for index, place in offsets.items() if elf.sections[index].name == ".static_call_sites")
        assert found[0].name == kind
