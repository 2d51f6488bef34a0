# SPDX-License-Identifier: GPL-2.0-or-later
"""Exceptions of the policy: the kernel may write a symbol of its read-only data, or a module's; nothing beside it."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from tests.services.kci.model_machine import ModelMachine
from tests.services.kci.modules.made_module import KERNEL, MEMORY, PERCPU, A, MadeModule, W
from tests.services.kci.small_kernel import BASE, DATA, NOP5, PHYSICAL, TEXT_SIZE, SmallKernel
from veil.formats.kci import KernelCall, MemoryType, ModuleMemory
from veil.formats.kci_status import CodeEvent
from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.service_events import Decision
from veil.services import Refused
from veil.services.kci import KernelImage, Segment
from veil.services.kci.guarded_data import module_data
from veil.services.kci.guarded_module import GuardedModule, numbered
from veil.services.kci.modules import AdmittedFile, ExportedSymbols, ModuleRefused, ModuleSpace, Prepared, prepare

RODATA = BASE + TEXT_SIZE
#: Its last 8 bytes are in the next page.
TABLE, AFTER = RODATA + PAGE_SIZE - 24, RODATA + PAGE_SIZE + 8
NEIGHBOUR = RODATA + 0x100
SYMBOLS = {
    "__start_rodata": RODATA, "__end_rodata": BASE + 0x4000, "__init_begin": BASE + 0x4000, "__init_end": DATA,
    "_sdata": DATA, "neighbour": NEIGHBOUR, "behind_neighbour": NEIGHBOUR + 16, "table": TABLE, "after": AFTER,
    "variable": DATA + 8,
}  # fmt: skip
NEW = bytes(range(8))


def _machine(*writable: str) -> ModelMachine:
    kernel = SmallKernel()
    kernel.symbols |= SYMBOLS
    kernel.entry("__start___jump_table", kernel.put(BASE + 0x100, NOP5), BASE + 0x200, DATA)
    data = kernel.image().segments[0].data
    whole = data.ljust(-(-len(data) // PAGE_SIZE) * PAGE_SIZE, b"\0")
    return ModelMachine(KernelImage([Segment(BASE, PHYSICAL, whole)]), writable=writable)


@pytest.fixture
def machine() -> ModelMachine:
    found = _machine("table", "neighbour")
    found.ask(KernelCall.LOCK_DOWN)
    return found


def _store(machine: ModelMachine, address: int, data: bytes = NEW, **how: Any) -> Decision:
    return machine.store(address - BASE + PHYSICAL, data, **how).decision


def _memory(machine: ModelMachine, address: int, length: int = 8) -> bytes:
    return machine.read(address - BASE + PHYSICAL, length)


@pytest.mark.parametrize("address", [TABLE, TABLE + 8, TABLE + 20, AFTER - 8, NEIGHBOUR + 3])
def test_the_symbol_is_written(machine: ModelMachine, address: int) -> None:
    """Wherever in it: a store over the end of a page is one store."""
    assert _store(machine, address) is Decision.RESUME
    assert _memory(machine, address) == NEW
    word = machine.words[-1]
    symbol = "neighbour" if address < TABLE else "table"
    assert (word.event, word.trouble) == (CodeEvent.EXCEPTION, False)
    assert (word.detail["symbol"], word.detail["address"], word.detail["bytes"]) == (symbol, address, NEW.hex())
    assert f"{symbol}+" in word.words
    status = machine.status()
    assert status.writable == {"table": 0, "neighbour": 0} | {symbol: 1}
    assert (status.violations, list(status.words)) == (0, [])


def test_the_second_page_is_the_one_that_is_refused(machine: ModelMachine) -> None:
    """As the hardware may tell it: the instruction says where the store begins."""
    start = TABLE + 20
    verdict = machine.store(RODATA + PAGE_SIZE - BASE + PHYSICAL, NEW, begins=start)
    assert verdict.decision is Decision.RESUME
    assert _memory(machine, start) == NEW


@pytest.mark.parametrize(
    ("address", "data"),
    [(TABLE - 1, NEW), (TABLE - 8, NEW), (AFTER - 7, NEW), (AFTER, b"\1"), (NEIGHBOUR + 9, NEW), (RODATA, NEW)],
)
def test_what_is_not_all_of_the_symbol_is_not(machine: ModelMachine, address: int, data: bytes) -> None:
    before = _memory(machine, address)
    assert _store(machine, address, data) is Decision.INJECT
    assert _memory(machine, address) == before
    assert machine.words[-1].event is CodeEvent.VIOLATION
    assert "a write to KERNEL_RODATA" in machine.words[-1].words


def test_user_mode_may_not(machine: ModelMachine) -> None:
    assert _store(machine, TABLE, cpl=3) is Decision.INJECT
    assert machine.words[-1].event is CodeEvent.VIOLATION


def test_without_the_exception_nothing_is_written() -> None:
    machine = _machine()
    machine.ask(KernelCall.LOCK_DOWN)
    assert _store(machine, TABLE) is Decision.INJECT
    assert machine.words[-1].event is CodeEvent.VIOLATION
    assert machine.status().writable == {}


@pytest.mark.parametrize(
    ("symbol", "why"),
    [
        ("nosuch", "nosuch, and has no symbol of that name"),
        ("ftrace_caller", "ftrace_caller, which is code: of code there are no exceptions"),
        ("variable", "variable, which is no read-only data"),
    ],
)
def test_what_cannot_be_an_exception_ends_lock_down(symbol: str, why: str) -> None:
    machine = _machine("table", symbol)
    with pytest.raises(Refused, match=f"not locked down: the kernel is to write {why}"):
        machine.ask(KernelCall.LOCK_DOWN)
    assert [word.event for word in machine.words] == [CodeEvent.NOT_LOCKED]
    assert set(machine.owners.values()) == {Owner.KERNEL}


def test_many_stores_do_not_fill_the_log(machine: ModelMachine) -> None:
    told = len(machine.words)
    for number in range(100):
        assert _store(machine, TABLE, bytes([number])) is Decision.RESUME
    assert machine.status().writable["table"] == 100
    assert len(machine.words) - told == 16 + len([32, 64])
    assert _store(machine, NEIGHBOUR) is Decision.RESUME
    assert machine.words[-1].detail["symbol"] == "neighbour", "another symbol has its own count"


def test_after_a_snapshot(machine: ModelMachine) -> None:
    assert _store(machine, TABLE) is Decision.RESUME
    machine.service.restore(machine.service._settings.measured(), machine.service.save())
    assert _store(machine, TABLE + 8) is Decision.RESUME
    assert _store(machine, TABLE - 8) is Decision.INJECT
    assert machine.status().writable == {"table": 2, "neighbour": 0}


# Modules

_LATER = ".data..ro_after_init"
_PLACES = MEMORY | {MemoryType.RO_AFTER_INIT: ModuleMemory(MEMORY[MemoryType.DATA].address + 0x800000, PAGE_SIZE)}
_MADE = (
    MadeModule()
    .with_section(".rodata", data=bytes(64))
    .with_section(_LATER, data=bytes(32), flags=A | W)
    .with_symbols(
        ("operations", ".rodata", 16, 1, 24), ("later", _LATER, 8, 1, 8), ("empty", ".rodata", 16, 1, 0),
        ("long", ".rodata", 16, 1, PAGE_SIZE), ("twice", ".rodata", 0, 1, 8), ("twice", ".rodata", 8, 1, 8),
        ("function_in_text", ".text", 0, 2, 8), ("data", ".data", 0, 1, 8),
    )
)  # fmt: skip


def _prepared() -> tuple[bytes, Prepared]:
    file = _MADE.build()
    space = ModuleSpace(range(0xFFFFFFFFC0000000, 0xFFFFFFFFC2000000), range(PERCPU, PERCPU + 4096))
    admitted = AdmittedFile(file, hashlib.sha256(file).digest(), None)
    return file, prepare(admitted, _PLACES, PERCPU, ExportedSymbols(KERNEL), space)


def test_of_modules_it_is_the_symbols_own_bytes() -> None:
    file, prepared = _prepared()
    operations, later = module_data(file, prepared, ["operations", "later"])
    assert operations.name == "made/operations"
    assert (operations.start - prepared.symbols["operations"], operations.size) == (0, 24)
    assert later.start - _PLACES[MemoryType.RO_AFTER_INIT].address == 8


@pytest.mark.parametrize("symbol", ["nosuch", "twice", "empty", "long", "function_in_text", "data", "printk"])
def test_what_a_module_does_not_have(symbol: str) -> None:
    file, prepared = _prepared()
    with pytest.raises(ModuleRefused, match=f"the kernel is to write its {symbol}, "):
        module_data(file, prepared, [symbol])


def test_of_modules_the_pages_count_that_are_read_only_now() -> None:
    """What is read-only after init is nobody's exception before: the kernel writes it as it is."""
    file, prepared = _prepared()
    anything: Any = None
    module = GuardedModule(1, prepared, anything, anything, file)
    module.writable = module_data(file, prepared, ["operations", "later"])
    assert list(module.data(anything)) == []
    module.read_only[MemoryType.RODATA] = numbered([0x7000])
    (operations,) = module.data(anything)
    assert operations.address_of(0x7010) == prepared.symbols["operations"]
    module.read_only[MemoryType.RO_AFTER_INIT] = numbered([0x9000])
    assert [piece.place.name for piece in module.data(anything)] == ["made/operations", "made/later"]
    # Its first page is not there: the others are where they were.
    module.read_only[MemoryType.RODATA] = {0x8000: 1}
    assert module.address_of(0x8004) == prepared.memory[MemoryType.RODATA].address + PAGE_SIZE + 4
    assert [piece.place.name for piece in module.data(anything)] == ["made/later"]
