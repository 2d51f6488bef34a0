# SPDX-License-Identifier: GPL-2.0-or-later
"""ACPI power management registers (ACPI 6.5, 4.8.3.1 and 4.8.3.2): enough for a guest to switch off."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["AcpiPm"]

_SCI_ENABLE, _SLEEP_ENABLE = 1 << 0, 1 << 13


class AcpiPm:
    """PM1a status, enable and control, 16 bits each. No event is ever signalled, so the SCI stays quiet."""

    BASE = 0x600
    PORTS = range(BASE, BASE + 6)

    def __init__(self, power_off: Callable[[], None]) -> None:
        self._power_off = power_off
        self._enable = 0
        self._control = _SCI_ENABLE

    def read(self, port: int, size: int) -> int:
        """Status reads as zero: nothing has happened."""
        registers = self._enable << 16 | self._control << 32
        return registers >> 8 * (port - self.BASE) & (1 << 8 * size) - 1

    def write(self, port: int, size: int, value: int) -> None:
        """SLP_EN with any sleep type switches off: S5 is the only state that the guest is told of."""
        if port == self.BASE + 2:
            self._enable = value & 0xFFFF
        elif port == self.BASE + 4:
            self._control = value & 0xFFFF & ~_SLEEP_ENABLE | _SCI_ENABLE
            if value & _SLEEP_ENABLE:
                self._power_off()

    def state(self) -> dict[str, int]:
        """For a snapshot."""
        return {"enable": self._enable, "control": self._control}

    def load(self, state: dict[str, int]) -> None:
        """From a snapshot."""
        self._enable, self._control = state["enable"] & 0xFFFF, state["control"] & 0xFFFF
