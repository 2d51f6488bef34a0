# SPDX-License-Identifier: GPL-2.0-or-later
"""What was sound is not explained again, and nothing else passes for it."""

from __future__ import annotations

import gc
import struct
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from tests.services.kci.small_kernel import BASE, SmallKernel, call
from veil.formats.kci import MemoryType, ModuleMemory
from veil.services.kci import KernelCode
from veil.services.kci.errors import KciError
from veil.services.kci.explain_code import CodeRules, Configuration, Explanation
from veil.services.kci.kernel_image import AddressRange
from veil.services.kci.module_code import ModuleCode

ADDRESS = 0xFFFFFFFFC0000000
SITE, SITES = ADDRESS + 0x10, ADDRESS + 0x2000
KERNELS = BASE + 0x1000
"""A function of the kernel's that may be called through a pointer."""
OTHERS = ADDRESS + 0x900000
"""The same of another module's."""
CONFIGURATION = Configuration("ret", "retpoline", "kept", False, {})
TEXT = b"\x90" * 16 + call(SITE, KERNELS) + b"\xcc" * 100


def _put(target: int) -> bytes:
    return TEXT[:16] + call(SITE, target) + TEXT[21:]


class _Module:
    """Code with one static call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.explained = 0
        self.variable: bytes | None = None
        prepared: Any = SimpleNamespace(
            name="made",
            memory={MemoryType.TEXT: ModuleMemory(ADDRESS, len(TEXT))},
            images={MemoryType.TEXT: TEXT},
            sections={".static_call_sites": SimpleNamespace(address=SITES, data=struct.pack("<ii", SITE - SITES, 0))},
            symbols={},
        )
        self.near = KernelCode(SmallKernel().image()).near
        self.code = ModuleCode(prepared, self.near)
        explain = CodeRules.explain

        def count(rules: CodeRules, *arguments: Any) -> Explanation:
            self.explained += 1
            return explain(rules, *arguments)

        monkeypatch.setattr(CodeRules, "explain", count)

    def is_sound(self, now: bytes, configuration: Configuration = CONFIGURATION) -> bool:
        return self.code.unexplained(MemoryType.TEXT, now, self._read, configuration) is None

    def _read(self, address: int, length: int) -> bytes:
        if self.variable is None:
            raise KciError("there is no such variable")
        return self.variable


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> _Module:
    return _Module(monkeypatch)


def test_what_was_sound_is_known_again(module: _Module) -> None:
    for _ in range(3):
        assert module.is_sound(TEXT)
        # Another module comes, and goes: all is as before.
        others = module.near.admit(targets=[OTHERS])
        module.code.admit(others.retire(AddressRange(OTHERS, OTHERS + 1)))
    assert module.explained == 1


@pytest.mark.parametrize("at", [0, 15, 16, 20, 21, len(TEXT) - 1])
def test_any_other_byte(module: _Module, at: int) -> None:
    changed = TEXT[:at] + bytes([TEXT[at] ^ 1]) + TEXT[at + 1 :]
    for _ in range(2):
        assert module.is_sound(TEXT)
        assert not module.is_sound(changed)
    assert module.explained == 3, "what is not sound is explained each time"


def test_code_around_that_is_gone(module: _Module) -> None:
    assert not module.is_sound(_put(OTHERS))
    module.code.admit(module.near.admit(targets=[OTHERS]))
    assert module.is_sound(_put(OTHERS))
    assert module.is_sound(_put(OTHERS))
    module.code.admit(module.near)
    assert not module.is_sound(_put(OTHERS))


def test_rules_that_others_have_changed_since(module: _Module) -> None:
    module.code.admit(module.near.admit(targets=[OTHERS]))
    assert module.is_sound(_put(OTHERS))
    for rules in module.code.rules.values():
        rules.admit(module.near)
    assert not module.is_sound(_put(OTHERS))


def test_another_configuration(module: _Module) -> None:
    assert module.is_sound(TEXT)
    assert module.is_sound(TEXT, Configuration("ret", "indirect", "kept", False, {}))
    assert module.explained == 2


def test_a_variable_that_patches_follow(module: _Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CodeRules, "variables", {BASE})
    for number, value in enumerate((bytes(8), bytes([1]) * 8, bytes(8)), 1):
        module.variable = value
        assert module.is_sound(TEXT)
        assert module.is_sound(TEXT)
        assert module.explained == number
    module.variable = None
    assert module.is_sound(TEXT)
    assert module.is_sound(TEXT)
    assert module.explained == 5, "what cannot be read is not known to be the same"


def test_what_was_around_before_it_came_is_around_when_it_has_left(module: _Module) -> None:
    with_it = module.code.around(module.near)
    assert module.code.without(MemoryType.TEXT, with_it) is module.near
    others = with_it.admit(targets=[OTHERS])
    left = module.code.without(MemoryType.TEXT, others)
    assert OTHERS in left.targets.tolist()
    assert module.code.without(MemoryType.TEXT, others) is left
    assert OTHERS not in module.code.without(MemoryType.TEXT, with_it).targets.tolist()


def test_rules_are_no_garbage_that_waits(module: _Module) -> None:
    """Of a large module they have many megabytes, and Python looks for cycles seldom."""
    gc.disable()
    try:
        gone, module.code = weakref.ref(module.code), None  # type: ignore[assignment]
        assert gone() is None
    finally:
        gc.enable()
