# SPDX-License-Identifier: GPL-2.0-or-later
"""One booted guest, and as many copies of it as tests want to break."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from veil.cvm import ConfidentialVM

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below this folder is an e2e test."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of a guest that was booted for this test run."""
    path = tmp_path_factory.mktemp("snapshots") / "booted"
    with ConfidentialVM(fresh=True) as vm:
        vm.snapshot(path)
    return path


@pytest.fixture
def resume(booted: Path) -> Iterator[Callable[[], ConfidentialVM]]:
    """Makes copies of the booted guest; each is the test's own."""
    made: list[ConfidentialVM] = []

    def make() -> ConfidentialVM:
        made.append(ConfidentialVM.restore(booted))
        return made[-1]

    yield make
    for vm in made:
        vm.close()


@pytest.fixture
def vm(resume: Callable[[], ConfidentialVM]) -> ConfidentialVM:
    """A copy of the booted guest."""
    return resume()
