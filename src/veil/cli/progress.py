# SPDX-License-Identifier: GPL-2.0-or-later
"""What a command says while it works."""

from __future__ import annotations

from veil.cli.output import tell

__all__ = ["Progress"]


class Progress:
    """Says on stderr what takes long: a line a step."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet

    def __call__(self, message: str) -> None:
        if not self._quiet:
            tell(f"veil: {message}")
