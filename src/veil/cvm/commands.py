# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands in the guest: the environment that they get, and how they end."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ENVIRONMENT", "Result"]

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: What a command has unless its caller says otherwise. Nothing of the environment of whoever starts `veil` gets in.
ENVIRONMENT = {"PATH": _PATH, "HOME": "/root", "USER": "root", "TERM": "dumb", "LANG": "C.UTF-8"}


@dataclass(frozen=True)
class Result:
    """How a command ended: `exit_status` as shells give it, 128 + number for a signal."""

    stdout: bytes
    stderr: bytes
    exit_status: int
