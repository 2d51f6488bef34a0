# SPDX-License-Identifier: GPL-2.0-or-later
"""Give the guest's kernel audit rules, by way of VeilS-LOG."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from importlib.resources import files

from veil.formats.printable import printable
from veil.remote.errors import RemoteError
from veil.remote.log.reader import LogReader

__all__ = ["default_rules", "load_rules"]

_POLL_SECONDS = 0.3
_LINE = re.compile(r"\berror in line (\d{1,5})\b")


def default_rules() -> bytes:
    """Lines for auditctl -R."""
    return files("veil.remote.log").joinpath("audit.rules").read_bytes()


def load_rules(
    reader: LogReader, text: bytes, *, seconds: float = 30.0, wait: Callable[[float], object] = time.sleep
) -> None:
    """Send rules and wait until the kernel says that it has them. Raises RemoteError if it does not, or refuses.

    The driver asks for new rules with each heartbeat. `wait` is called between two looks; in the process in which the
    guest runs too, it must let it run (`ConfidentialVM.wait`).
    """
    generation = reader.set_rules(text)
    end = time.monotonic() + seconds
    while (state := reader.rules()).loaded < generation:
        if time.monotonic() > end:
            raise RemoteError(
                f"the kernel has not loaded the rules in {seconds:g} seconds: it has no driver (/dev/veil), no "
                "heartbeats, or other plans"
            )
        wait(_POLL_SECONDS)
    if state.loaded != generation:
        raise RemoteError("another owner has sent other rules in the meantime")
    if state.status < 0:
        raise RemoteError(f"the kernel could not run auditctl: {os.strerror(-state.status & 0xFFF)}")
    if state.status:
        reason = _reason(state.words, text)
        raise RemoteError(
            f"auditctl refused the rules (exit status {state.status}){reason}; rules before that may be loaded"
        )


def _reason(words: bytes, text: bytes) -> str:
    """What auditctl said, as the kernel says, on one line; and the line of the rules that it names."""
    # Bytes of the kernel's choice: what steers a terminal is shown and not sent.
    said = "; ".join(printable(line) for line in words.splitlines() if line.strip())
    found = _LINE.search(said)
    lines = text.splitlines()
    if found is None or not 1 <= int(found[1]) <= len(lines):
        return f": {said}" if said else ""
    return f": {said}; line {found[1]} is: {printable(lines[int(found[1]) - 1].strip())}"
