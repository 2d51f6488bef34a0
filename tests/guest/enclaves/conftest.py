# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os

import pytest

from tests.guest.enclaves.native_runtime import NativeRuntime


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> NativeRuntime:
    """All processes of a run share what one has compiled."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "native"
    place.mkdir(exist_ok=True)
    return NativeRuntime(place)
