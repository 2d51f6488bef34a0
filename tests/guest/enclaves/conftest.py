# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest

from tests.guest.enclaves.native_runtime import NativeRuntime


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> NativeRuntime:
    return NativeRuntime(tmp_path_factory.mktemp("native"))
