# SPDX-License-Identifier: GPL-2.0-or-later
"""A CMOS clock (MC146818): the host's wall clock in UTC, BCD, 24 hours; no alarms."""

from __future__ import annotations

import time
from typing import Any

__all__ = ["Rtc"]

_STATUS_A, _STATUS_B, _STATUS_C, _STATUS_D, _CENTURY = 0x0A, 0x0B, 0x0C, 0x0D, 0x32
_24_HOURS, _VALID = 0x02, 0x80


def _bcd(value: int) -> int:
    return value // 10 << 4 | value % 10


class Rtc:
    """Ports 70h (index) and 71h (data)."""

    PORTS = (0x70, 0x71)

    def __init__(self) -> None:
        self._index = 0
        self._memory = bytearray(128)

    def read(self, port: int, size: int) -> int:
        """IN."""
        if port == 0x70:
            return 0xFF
        index = self._index
        now = time.gmtime()
        fields = {
            0: now.tm_sec, 2: now.tm_min, 4: now.tm_hour, 6: (now.tm_wday + 1) % 7 + 1, 7: now.tm_mday,
            8: now.tm_mon, 9: now.tm_year % 100, _CENTURY: now.tm_year // 100,
        }  # fmt: skip
        if index in fields:
            return _bcd(fields[index])
        return {_STATUS_A: 0x26, _STATUS_B: _24_HOURS, _STATUS_C: 0, _STATUS_D: _VALID}.get(index, self._memory[index])

    def write(self, port: int, size: int, value: int) -> None:
        """OUT; setting the clock is ignored."""
        if port == 0x70:
            self._index = value & 0x7F
        elif self._index > _STATUS_D:
            self._memory[self._index] = value & 0xFF

    def state(self) -> dict[str, Any]:
        """For a snapshot."""
        return {"index": self._index, "memory": bytes(self._memory)}

    def load(self, state: dict[str, Any]) -> None:
        """From a snapshot."""
        self._index = state["index"]
        self._memory = bytearray(state["memory"])
