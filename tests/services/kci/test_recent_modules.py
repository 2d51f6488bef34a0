# SPDX-License-Identifier: GPL-2.0-or-later
"""What is derived from a module's file is derived once, for the same file at the same place among the same exports."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.services.kci.modules.made_module import (
    KERNEL,
    MEMORY,
    MODULE_ADDRESS,
    PERCPU,
    MadeModule,
    MadeSection,
)
from tests.services.kci.small_kernel import SmallKernel
from veil.formats.kci import ModuleMemory, ModulePrepared
from veil.services.kci import KernelCode
from veil.services.kci.modules import (
    AdmittedFile,
    ExportedSymbols,
    Exports,
    Keyring,
    ModulePolicy,
    ModuleRefused,
    ModuleSpace,
)
from veil.services.kci.recent_modules import RecentModules

TOLD = ModulePrepared(PERCPU, MEMORY)
MOVED = ModulePrepared(
    PERCPU, {kind: ModuleMemory(place.address + 0x100000, place.size) for kind, place in MEMORY.items()}
)


def _recent(*files: bytes) -> RecentModules:
    hashes = frozenset(hashlib.sha256(file).digest() for file in files)
    space = ModuleSpace(range(MODULE_ADDRESS, MODULE_ADDRESS + (1 << 24)), range(PERCPU, PERCPU + 4096))
    measured: Any = SimpleNamespace(policy=ModulePolicy(Keyring([]), hashes), module_space=space)
    return RecentModules(measured)


def _admit(recent: RecentModules, file: bytes) -> AdmittedFile:
    return recent.admit(file, hashlib.sha256(file).digest())


def test_a_file_that_comes_again() -> None:
    file, near = MadeModule().build(), KernelCode(SmallKernel().image()).near
    recent, exported = _recent(file), ExportedSymbols(KERNEL)
    admitted = _admit(recent, file)
    assert _admit(recent, bytes(file)) is admitted
    first = recent.derive(admitted, TOLD, exported, near)
    exported.add("itself", Exports({"own": 1}))
    exported.remove("itself")
    assert recent.derive(admitted, TOLD, exported, near) == first
    moved = recent.derive(admitted, MOVED, exported, near)
    assert moved[0].memory == MOVED.memory
    exported.add("other", Exports({"symbol": 1}))
    again = recent.derive(admitted, MOVED, exported, near)
    assert again[1] is not moved[1], "a symbol may be another one's now"
    others = near.admit(targets=[MODULE_ADDRESS + 0x900000])
    (_, code) = recent.derive(admitted, MOVED, exported, others)
    assert code is again[1]
    for rules in code.rules.values():
        assert MODULE_ADDRESS + 0x900000 not in rules.near.targets, "it may be of a module that runs"
    code.admit(others)
    for rules in code.rules.values():
        assert MODULE_ADDRESS + 0x900000 in rules.near.targets


def test_what_it_exports_is_nobody_elses() -> None:
    """Also of a file that is known: whether that is so is known with who exports what."""
    entries = MadeSection("__ksymtab", bytes(12), alignment=4, relocations=((0, 2, "function", 4), (4, 2, "names", 0)))
    module = MadeModule()
    sections = (*module.sections, entries, MadeSection("__ksymtab_strings", b"\0made_function\0", alignment=1))
    file = replace(module, sections=sections).with_symbols(("names", "__ksymtab_strings", 1, 0)).build()
    recent, exported, near = _recent(file), ExportedSymbols(KERNEL), KernelCode(SmallKernel().image()).near
    admitted = _admit(recent, file)
    prepared, _ = recent.derive(admitted, TOLD, exported, near)
    for name, message in (("other", "made_function, which is exported already"), (prepared.name, "runs already")):
        exported.add(name, prepared.exports)
        with pytest.raises(ModuleRefused, match=message):
            recent.derive(admitted, TOLD, exported, near)
        exported.remove(name)
    assert recent.derive(admitted, TOLD, exported, near)[0] is prepared


def test_it_is_bounded() -> None:
    files = [MadeModule().build() + bytes(number) for number in range(20)]
    recent = _recent(*files)
    for file in files:
        _admit(recent, file)
    assert len(recent._known) == 4
    large = bytes(1 << 20)
    recent = _recent(large)
    assert _admit(recent, large) is not _admit(recent, large)


def test_nobody_vouches_for_it() -> None:
    recent = _recent()
    for _ in range(2):
        with pytest.raises(ModuleRefused, match="not signed"):
            _admit(recent, b"\x7fELF")
