# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals that end a command do it the way Ctrl-C does: what is open is closed, the terminal is restored."""

from __future__ import annotations

import signal
import types

__all__ = ["end_cleanly"]

_ENDING = (signal.SIGTERM, signal.SIGHUP)


def end_cleanly() -> None:
    """From now on these signals raise SystemExit, with the status that shells give: 128 + number."""
    for number in _ENDING:
        # nohup has us ignore SIGHUP.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, _: types.FrameType | None) -> None:
    # A second signal means that the user does not want to wait.
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(128 + number)
