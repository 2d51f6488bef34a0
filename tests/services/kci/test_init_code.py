# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing may lead to a module's init code once that is the kernel's memory again, whoever tells of it and when."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.services.kci.modules.made_module import KERNEL, MEMORY, MODULE_ADDRESS, PERCPU, A, MadeModule, X
from tests.services.kci.small_kernel import ENDBR, SmallKernel
from veil.formats.kci import FilePart, MemoryType, ModulePrepared
from veil.formats.kci_settings import ON, KciSettings
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.service_domain import Change
from veil.services.kci import KernelCode
from veil.services.kci.explain_code import Configuration
from veil.services.kci.ledger import Ledger
from veil.services.kci.module_calls import ModuleCalls
from veil.services.kci.modules import ExportedSymbols, Keyring, ModulePolicy, ModuleRefused, ModuleSpace, prepare
from veil.services.kci.surroundings import Surroundings

FILE = (
    MadeModule()
    .with_section(".init.text", data=ENDBR + b"\xc3", flags=A | X)
    .with_symbols(("early", ".init.text", 0, 0x12))
    .build()
)
EARLY = MEMORY[MemoryType.INIT_TEXT].address
"""A function of its init code that may be called through a pointer."""
TOLD = ModulePrepared(PERCPU, MEMORY)
SPACE = ModuleSpace(range(MODULE_ADDRESS, MODULE_ADDRESS + (1 << 24)), range(PERCPU, PERCPU + 4096))
CONFIGURATION = Configuration("ret", "retpoline", "kept", False, {})


def _run(work: Generator[Any, Any, Any]) -> Any:
    """What it comes to; the model answers at once."""
    try:
        next(work)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("nobody is asked here")


class _Text:
    """The kernel's, as far as modules need it."""

    def __init__(self) -> None:
        self.rules = self
        self.near = KernelCode(SmallKernel().image()).near

    def admit(self, near: Surroundings) -> None:
        self.near = near


class _Kernel:
    """Pages with the module in them."""

    def __init__(self) -> None:
        policy = ModulePolicy(Keyring([]), frozenset({hashlib.sha256(FILE).digest()}))
        prepared = prepare(policy.admit(FILE), MEMORY, PERCPU, ExportedSymbols(KERNEL), SPACE)
        self.content: dict[int, bytes] = {}
        for kind in sorted(MEMORY):
            self.content[PAGE_SIZE * (100 + kind)] = prepared.images.get(kind, bytes(PAGE_SIZE))
        context: Any = SimpleNamespace(memory=self, monitor=self, guest=SimpleNamespace(read=self._read_page))
        measured: Any = SimpleNamespace(policy=policy, module_space=SPACE, exported=lambda: ExportedSymbols(KERNEL))
        self.calls = ModuleCalls(context, KciSettings(mode=ON), measured, Ledger(lambda word, *, urgent=False: None))
        self.text: Any = _Text()

    def _read_page(self, gpa: int, length: int) -> bytes:
        return self.content[gpa][:length]

    def read(self, offset: int, length: int) -> bytes:
        """The service's memory."""
        return FILE[offset : offset + length]

    def copy_in(self, pages: list[int], length: int, offset: int) -> Generator[Any, Any, None]:
        return
        yield

    def copy_and_change(
        self, pages: list[int], length: int, offset: int, changes: list[Change]
    ) -> Generator[Any, Any, None]:
        return
        yield

    def change(self, changes: list[Change]) -> Generator[Any, Any, None]:
        return
        yield

    def load(self, *, locked: bool) -> int:
        part = FilePart(len(FILE), 0)
        pages = [*(PAGE_SIZE * number for number in range(part.pages)), *self.content]
        around: Any = (CONFIGURATION, self.text) if locked else (None, None)
        return int(_run(self.calls.take(part, TOLD, pages, *around)))

    def leads_there(self) -> set[bool]:
        """Whether the rules of the kernel's text and of each piece of code allow it."""
        rules = [self.text.rules, *(code.rules for code in self.calls.codes())]
        return {EARLY in piece.near.targets for piece in rules}


def test_while_it_runs() -> None:
    kernel = _Kernel()
    number = kernel.load(locked=True)
    assert kernel.leads_there() == {True}
    _run(kernel.calls.live(number))
    assert kernel.leads_there() == {False}


def test_the_same_file_is_told_of_again() -> None:
    kernel = _Kernel()
    _run(kernel.calls.live(kernel.load(locked=True)))
    with pytest.raises(ModuleRefused, match="runs already"):
        kernel.load(locked=True)
    assert kernel.leads_there() == {False}


def test_it_was_gone_before_lock_down() -> None:
    kernel = _Kernel()
    number = kernel.load(locked=False)
    _run(kernel.calls.live(number))
    _run(kernel.calls.admit_early(CONFIGURATION, kernel.text))
    assert kernel.leads_there() == {False}


def test_it_was_gone_before_a_snapshot() -> None:
    kernel, again = _Kernel(), _Kernel()
    _run(kernel.calls.live(kernel.load(locked=True)))
    again.calls.load(json.loads(json.dumps(kernel.calls.dump())))
    again.calls.rebuild(again.text)
    assert len(again.calls.modules) == 1
    assert again.leads_there() == {False}
