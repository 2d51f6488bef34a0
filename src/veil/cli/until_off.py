# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests without Veil's agent: their console is shown until they switch themselves off."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

from veil.cli.output import Console

if TYPE_CHECKING:
    from veil.cvm import ConfidentialVM

__all__ = ["run_until_off"]


def run_until_off(vm: ConfidentialVM, shown: Console) -> None:
    """Boot it and show its console; what is typed goes to its serial port."""
    _forward_lines(vm)
    vm.run_until_off(shown.feed)


def _forward_lines(vm: ConfidentialVM) -> None:
    """What is typed goes to the guest, line by line, in a thread that ends with this process."""

    def forward() -> None:
        for line in sys.stdin.buffer:
            vm.type_in(line)

    if sys.stdin is not None and sys.stdin.isatty():
        threading.Thread(target=forward, daemon=True).start()
