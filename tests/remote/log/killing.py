# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that is killed between two steps by which it changes files."""

from __future__ import annotations

import os
from typing import Any

import pytest

__all__ = ["Killed", "killing"]

_CHANGES = ("write", "replace", "fsync", "ftruncate")
_USERS = ("veil.remote.log.folder.os", "veil.remote.log.export.os", "veil.private_files.os")


class Killed(BaseException):
    """It runs no longer."""


class _Os:
    """`os`, whose n-th call that changes something does not happen (of a write, half does), nor any after it."""

    def __init__(self, calls: int) -> None:
        self._left = calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        if name not in _CHANGES:
            return found

        def call(*args: Any) -> Any:
            self._left -= 1
            if self._left == 0 and name == "write":
                found(args[0], bytes(args[1])[: len(args[1]) // 2])
            if self._left <= 0:
                raise Killed
            return found(*args)

        return call


def killing(patch: pytest.MonkeyPatch, calls: int) -> None:
    """The writers of logs get as far as before their n-th change."""
    instead = _Os(calls)
    for name in _USERS:
        patch.setattr(name, instead)
