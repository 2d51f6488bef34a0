# SPDX-License-Identifier: GPL-2.0-or-later
"""Lock-down that does not come to its end, whoever brings it about: at its last step, when other memory has lost the
right to execute for good, and before. And what the host takes away afterwards."""

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
from veil.formats.status import Status
from veil.services import MonitorRefused, Refused
from veil.services.kci import KernelImage, Segment, lock_down
from veil.services.kci.module_calls import ModuleCalls
from veil.snp.errors import RmpViolation

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


@pytest.mark.parametrize("page", [0, TEXT_SIZE - PAGE_SIZE])
def test_the_host_takes_text_away_while_it_is_read(machine: ModelMachine, page: int) -> None:
    """Nobody could say what it holds. Lock-down is refused like any other that is: for good, and the log says why."""
    machine.coveted = {PHYSICAL + page}
    with pytest.raises(Refused, match="the kernel is not locked down: the host took memory away"):
        machine.ask(KernelCall.LOCK_DOWN)
    assert [word.event for word in machine.words][-1] is CodeEvent.NOT_LOCKED
    assert f"; and then the page {PHYSICAL + page:#x} is not there" in machine.words[-1].words
    assert machine.restricted == _ends(machine)
    assert {page for page, owner in machine.owners.items() if owner is not Owner.KERNEL} == {PHYSICAL + page}
    machine.coveted, machine.taken = set(), set()
    with pytest.raises(Refused, match="asked for again"):
        machine.ask(KernelCall.LOCK_DOWN)
    assert machine.status().locked_ns is None


@pytest.mark.parametrize(
    ("error", "raised", "told"),
    [
        (IndexError("3"), IndexError, "VeilS-KCI failed: IndexError"),
        (RmpViolation(PHYSICAL, 1, "read", "the page is split"), Refused, "the host took memory away"),
    ],
)
def test_whatever_it_is_that_ends_it(
    machine: ModelMachine, monkeypatch: pytest.MonkeyPatch, error: Exception, raised: type[Exception], told: str
) -> None:
    """A mistake of the service's own is told too."""

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(lock_down, "_explain", fails)
    with pytest.raises(raised):
        machine.ask(KernelCall.LOCK_DOWN)
    assert [word.event for word in machine.words] == [CodeEvent.NOT_LOCKED]
    assert machine.words[0].words.startswith(f"the kernel is not locked down: {told}")
    assert machine.restricted == _ends(machine)
    assert set(machine.owners.values()) == {Owner.KERNEL}, "all of it is given back"
    with pytest.raises(Refused, match="asked for again"):
        machine.ask(KernelCall.LOCK_DOWN)


def test_text_is_given_back_whatever_becomes_of_modules(machine: ModelMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise MonitorRefused(Status.UNAVAILABLE, "a module's page is not there")

    monkeypatch.setattr(ModuleCalls, "admit_early", fails)
    monkeypatch.setattr(ModuleCalls, "release", fails)
    with pytest.raises(Refused, match="a module's page is not there"):
        machine.ask(KernelCall.LOCK_DOWN)
    assert set(machine.owners.values()) == {Owner.KERNEL}


@pytest.mark.parametrize("first", [0, 1])
def test_the_host_takes_text_away_that_is_being_patched(machine: ModelMachine, first: int) -> None:
    """The VCPU cannot go on in code that is not there; and somebody learns of it."""
    machine.ask(KernelCall.LOCK_DOWN)
    place = LABEL - BASE + PHYSICAL
    for at in range(first):
        assert machine.store(place + at, b"\xcc").decision is Decision.RESUME
    machine.coveted = {PHYSICAL}
    assert machine.store(place + first, b"\xcc\0\0\0"[: 4 if first else 1]).decision is Decision.REFUSE
    assert machine.words[-1].event is CodeEvent.VIOLATION
    assert "the host took memory away" in machine.words[-1].words


def _ends(machine: ModelMachine) -> list[Owner]:
    """What is restricted at a kernel's end."""
    halts = machine.status().mode == HALT
    return [Owner.KERNEL_CODE, Owner.MODULE_CODE, Owner.KERNEL] if halts else []
