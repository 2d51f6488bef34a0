# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent as it is built: the same bytes each time, and one line if it cannot be."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from veil.cache import Cache
from veil.guest.agent.build import build_agent
from veil.guest.errors import GuestImageError


def test_agent_is_static_and_reproducible(tmp_path: Path) -> None:
    first, second = build_agent(Cache(tmp_path / "a")), build_agent(Cache(tmp_path / "b"))
    assert first.read_bytes() == second.read_bytes()
    headers = subprocess.run(["readelf", "-l", first], capture_output=True, text=True, check=True).stdout
    assert "INTERP" not in headers


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(GuestImageError, match="no C compiler"):
        build_agent(Cache(tmp_path))
    monkeypatch.setenv("CC", "false")
    with pytest.raises(GuestImageError, match="cannot compile"):
        build_agent(Cache(tmp_path))
