# SPDX-License-Identifier: GPL-2.0-or-later
"""How a guest switches its machine off and resets it.

By the PM1 registers (ACPI 6.5, 4.8.3), by port CF9h, and by the keyboard controller: there is none, but the command
that pulses the reset line is heard.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from veil.formats.board import PM1_CONTROL_PORT, PM1_EVENT_PORT, RESET_PORT, SLEEP_ENABLE
from veil.host.devices._state import load_integers, save_integers

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.host.devices.bus import IoBus

__all__ = ["PowerControl"]

_KEYBOARD_COMMAND = 0x64

_SCI_ENABLE = 1 << 0
_RESET_CPU = 0x04
_PULSE_RESET = 0xFE


class PowerControl:
    """Every sleep type is S5: there is no other. SCI never comes, since nothing happens that it would tell."""

    _SAVED = ("_enable", "_control", "_reset_control")

    def __init__(self) -> None:
        self.on_power_off: Callable[[], None] | None = None
        self.on_reset: Callable[[], None] | None = None
        self._enable = 0
        self._control = _SCI_ENABLE
        self._reset_control = 0

    def attach(self, bus: IoBus) -> None:
        """Put the registers on a bus."""
        for offset in range(2):
            bus.add_register(PM1_EVENT_PORT + offset, lambda: 0, lambda value: None)
            bus.add_register(PM1_EVENT_PORT + 2 + offset, *self._byte("_enable", offset))
        bus.add_register(PM1_CONTROL_PORT, *self._byte("_control", 0))
        read, _ = self._byte("_control", 1)
        bus.add_register(PM1_CONTROL_PORT + 1, read, self._write_control_high)
        bus.add_register(RESET_PORT, lambda: self._reset_control, self._write_reset_control)
        bus.add_register(_KEYBOARD_COMMAND, None, self._write_keyboard_command)

    def _byte(self, name: str, index: int) -> tuple[Callable[[], int], Callable[[int], None]]:
        def read() -> int:
            value: int = getattr(self, name)
            return value >> 8 * index & 0xFF

        def write(value: int) -> None:
            setattr(self, name, getattr(self, name) & ~(0xFF << 8 * index) | value << 8 * index)

        return read, write

    def _write_control_high(self, value: int) -> None:
        self._control = (self._control & 0xFF | value << 8) & ~SLEEP_ENABLE | _SCI_ENABLE
        if value << 8 & SLEEP_ENABLE and self.on_power_off is not None:
            self.on_power_off()

    def _write_reset_control(self, value: int) -> None:
        self._reset_control = value & 0x0A
        if value & _RESET_CPU:
            self._reset()

    def _write_keyboard_command(self, value: int) -> None:
        if value == _PULSE_RESET:
            self._reset()

    def _reset(self) -> None:
        if self.on_reset is not None:
            self.on_reset()

    def dump(self) -> dict[str, Any]:
        return save_integers(self, self._SAVED)

    def load(self, state: dict[str, Any]) -> None:
        load_integers(self, self._SAVED, state)
