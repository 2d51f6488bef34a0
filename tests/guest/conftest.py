# SPDX-License-Identifier: GPL-2.0-or-later
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.agent.agent_process import AgentProcess
from veil.cache import Cache
from veil.guest.agent.build import build_agent


@pytest.fixture(scope="session")
def agent_path() -> Path:
    return build_agent(Cache())


@pytest.fixture
def agent(agent_path: Path) -> Iterator[AgentProcess]:
    with AgentProcess(agent_path) as process:
        yield process
