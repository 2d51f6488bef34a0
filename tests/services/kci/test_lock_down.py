# SPDX-License-Identifier: GPL-2.0-or-later
"""Lock-down whose last step is refused: other memory has lost the right to execute for good by then."""

from __future__ import annotations

import pytest

from tests.services.kci.model_machine import ModelMachine
from tests.services.kci.small_kernel import BASE, DATA, NOP5, PHYSICAL, TEXT_SIZE, SmallKernel
from veil.formats.kci import KernelCall
from veil.formats.kci_settings import HALT, ON
from veil.formats.kci_status import CodeEvent
from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.service_events import Decision
from veil.services import Refused
from veil.services.kci import KernelImage, Segment

LABEL = BASE + 0x100


@pytest.fixture(params=[ON, HALT])
def machine(request: pytest.FixtureRequest) -> ModelMachine:
    kernel = SmallKernel()
    kernel.entry("__start___jump_table", kernel.put(LABEL, NOP5), BASE + 0x200, DATA)
    kernel.symbols |= {
        "__start_rodata": BASE + TEXT_SIZE, "__end_rodata": BASE + 0x4000, "__init_begin": BASE + 0x4000,
        "__init_end": DATA, "_sdata": DATA,
    }  # fmt: skip
    data = kernel.image().segments[0].data
    whole = data.ljust(-(-len(data) // PAGE_SIZE) * PAGE_SIZE, b"\0")
    return ModelMachine(KernelImage([Segment(BASE, PHYSICAL, whole)]), mode=request.param)


def test_other_pages_that_keep_the_right_end_the_kernel(machine: ModelMachine) -> None:
    """Text that is given back would not be executable any more; to go on would be to claim what is not so."""
    machine.keeping = True
    with pytest.raises(Refused, match="the kernel is not locked down: a page keeps its rights"):
        machine.ask(KernelCall.LOCK_DOWN)
    # The first is lock-down's. At the end each is tried, whichever is refused.
    assert machine.restricted == [Owner.KERNEL, Owner.KERNEL_CODE, Owner.MODULE_CODE, Owner.KERNEL]
    assert machine.owners[PHYSICAL] is Owner.KERNEL_CODE
    ends = [word.event for word in machine.words]
    assert ends == [CodeEvent.VIOLATION, CodeEvent.NOT_LOCKED], "which pages may still run, and what it comes to"
    assert machine.store(LABEL - BASE + PHYSICAL, b"\xcc").decision is Decision.REFUSE
    assert len(machine.words) == 2, "what the kernel's other VCPUs come upon tells nothing new"
    assert machine.status().locked_ns is None
    with pytest.raises(Refused):
        machine.ask(KernelCall.LOCK_DOWN)


def test_it_stays_ended_after_a_snapshot(machine: ModelMachine) -> None:
    machine.keeping = True
    with pytest.raises(Refused):
        machine.ask(KernelCall.LOCK_DOWN)
    settings, state = machine.service._settings.measured(), machine.service.save()
    machine.service.restore(settings, state)
    assert machine.store(LABEL - BASE + PHYSICAL, b"\xcc").decision is Decision.REFUSE


def test_otherwise_it_patches_itself(machine: ModelMachine) -> None:
    machine.ask(KernelCall.LOCK_DOWN)
    assert machine.restricted == [Owner.KERNEL]
    assert machine.store(LABEL - BASE + PHYSICAL, b"\xcc").decision is Decision.RESUME
