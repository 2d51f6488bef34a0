# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel that patches itself everywhere, and has many modules, does not keep users from the status."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from tests.services.kci.model_machine import ModelMachine
from tests.services.kci.small_kernel import SmallKernel
from veil.formats.kci_status import ModuleStatus
from veil.formats.request_block import BLOCK_HEADER
from veil.formats.service_domain import OUTBOX_SIZE
from veil.image.services_image import MAILBOX_SIZE
from veil.services.kci import service
from veil.services.kci.guarded_module import _MAX_TOLD
from veil.services.kci.ledger import _MAX_SYMBOLS, _MAX_WORDS
from veil.services.kci.live_sites import KINDS
from veil.services.kci.module_calls import _MAX_MODULES


@pytest.fixture
def machine() -> ModelMachine:
    return ModelMachine(SmallKernel().image())


def _patch_everywhere(machine: ModelMachine, length: int) -> None:
    machine.service._ledger.patches = {
        kind: Counter({f"{number:0{length}}": number for number in range(1, _MAX_SYMBOLS + 1)}) for kind in KINDS
    }


def _have_modules(machine: ModelMachine, count: int, text: str) -> None:
    modules: Any = {
        number: SimpleNamespace(status=ModuleStatus(number, "m" * 55, text, text, "0" * 64, 4096, True))
        for number in range(count)
    }
    machine.service._loader.modules = modules


def test_it_fits_into_the_mailbox() -> None:
    assert service._MAX_STATUS <= MAILBOX_SIZE - OUTBOX_SIZE - BLOCK_HEADER


@pytest.mark.parametrize("length", [20, 500])
def test_symbols_with_the_most_patches_are_told(machine: ModelMachine, length: int) -> None:
    _patch_everywhere(machine, length)
    found = machine.status()
    assert len(found.pack()) <= service._MAX_STATUS
    assert found.patches.keys() == set(KINDS)
    for counts in found.patches.values():
        assert sum(counts.values()) == sum(range(1, _MAX_SYMBOLS + 1)), "none is left out of the sum"
        assert 16 < len(counts) < _MAX_SYMBOLS
        assert counts[f"{_MAX_SYMBOLS:0{length}}"] == _MAX_SYMBOLS
        assert f"{1:0{length}}" not in counts


def test_few_are_told_whole(machine: ModelMachine) -> None:
    machine.service._ledger.patches = {KINDS[0]: Counter({"a": 1, "b": 2})}
    _have_modules(machine, 3, "1.0")
    found = machine.status()
    assert found.patches == {KINDS[0]: {"a": 1, "b": 2}}
    assert (len(found.modules), found.modules_left_out) == (3, 0)


@pytest.mark.parametrize("text", ["1.0", "x" * _MAX_TOLD, "\N{SNOWMAN}" * _MAX_TOLD])
def test_as_many_modules_as_there_can_be(machine: ModelMachine, text: str) -> None:
    _patch_everywhere(machine, 100)
    _have_modules(machine, _MAX_MODULES, text)
    machine.service._ledger.words.extend(["w" * 1000] * _MAX_WORDS)
    found = machine.status()
    assert len(found.pack()) <= service._MAX_STATUS
    assert len(found.modules) + found.modules_left_out == _MAX_MODULES
    assert found.modules[-1].number == _MAX_MODULES - 1
