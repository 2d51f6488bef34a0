# SPDX-License-Identifier: GPL-2.0-or-later
"""Two single ports: the timer by which firmware waits, and the one on which a debug build of it prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from veil.formats.board import PM_TIMER_PORT
from veil.host.devices._state import checked_int

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.host.devices.bus import IoBus

__all__ = ["PmTimer", "attach_debug_port"]

_FREQUENCY = 3_579_545
_MASK = (1 << 24) - 1
_NS = 1_000_000_000

#: QEMU's isa-debugcon: reading tells that it is there.
_DEBUG_PORT, _DEBUG_PRESENT = 0x402, 0xE9


class PmTimer:
    """The power management timer (ACPI 6.5, 4.8.3.3): 24 bits at 3.579545 MHz. It never interrupts.

    After a snapshot it goes on from where it was.
    """

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now = now_ns
        self._start_ns = now_ns()

    def attach(self, bus: IoBus) -> None:
        """Put it on a bus."""
        bus.add_wide(PM_TIMER_PORT, lambda size: self._ticks() & (1 << 8 * size) - 1, lambda size, value: None)

    def _ticks(self) -> int:
        return (self._now() - self._start_ns) * _FREQUENCY // _NS & _MASK

    def dump(self) -> dict[str, Any]:
        return {"passed_ns": self._now() - self._start_ns}

    def load(self, state: dict[str, Any]) -> None:
        self._start_ns = self._now() - checked_int(state["passed_ns"])


def attach_debug_port(bus: IoBus, output: Callable[[bytes], None]) -> None:
    """`output` gets what the firmware says."""
    bus.add_register(_DEBUG_PORT, lambda: _DEBUG_PRESENT, lambda value: output(bytes([value & 0xFF])))
