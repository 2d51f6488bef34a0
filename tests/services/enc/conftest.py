# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest

from tests.services.enc.enclave_bench import EnclaveBench


@pytest.fixture
def bench() -> EnclaveBench:
    bench = EnclaveBench(vcpus=2)
    bench.boot()
    return bench
