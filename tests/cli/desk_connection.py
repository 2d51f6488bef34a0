# SPDX-License-Identifier: GPL-2.0-or-later
"""`veil logs` with a VeilS-LOG of the tests' in place of a CVM."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.services.log.desk import Desk
from veil.remote.log.reader import LogReader, LogState

__all__ = ["connect_to"]


def connect_to(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the commands are told to connect to is the desk, and attested."""

    @contextlib.contextmanager
    def connected(**_: Any) -> Iterator[tuple[None, None]]:
        yield None, None

    def open_log(*_: Any, known: LogState | None, **__: Any) -> LogReader:
        return desk.reader(known)

    monkeypatch.setattr("veil.cli.log.connection.connected", connected)
    monkeypatch.setattr("veil.remote.log.connect.open_log", open_log)
