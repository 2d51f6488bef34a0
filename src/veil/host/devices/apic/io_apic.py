# SPDX-License-Identifier: GPL-2.0-or-later
"""The I/O APIC (Intel, 82093AA data sheet, chapter 3): interrupt lines become messages to local APICs.

As in later chipsets a physical destination has 8 bits, not 4. A pin's polarity is kept and has no effect: a line is
asserted or not. What comes in while an edge-triggered pin is masked is lost, as the data sheet has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from veil.host.devices._state import checked_int, load_integers, save_integers
from veil.host.devices.apic.apic import Delivery
from veil.host.devices.bus import Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.host.devices.apic.interrupts import InterruptRouter

__all__ = ["PINS", "IoApic"]

PINS = 24
_PAGE = 0x1000
#: Address bits 7:0 choose between the two registers that are seen (3.1); they repeat in the page.
_SELECT, _WINDOW, _DECODED = 0x00, 0x10, 0xFF

# The registers behind the window (3.2).
_ID, _VERSION, _ARBITRATION, _REDIRECTIONS = 0x00, 0x01, 0x02, 0x10
_VERSION_VALUE = 0x11 | PINS - 1 << 16
_ID_WRITABLE = 0x0F000000

# A redirection entry (3.2.4); bit 12, the delivery status, is always idle: a message needs no time.
_LOGICAL = 1 << 11
_REMOTE_IRR = 1 << 14
_LEVEL = 1 << 15
_MASKED = 1 << 16
_LOW_WRITABLE = 0x1AFFF
_HIGH_WRITABLE = 0xFF000000
_LOW = 0xFFFFFFFF


def _is_level(entry: int) -> bool:
    """Is it level-triggered? NMI and its like are edges, whatever the entry says (3.2.4, "DELMOD")."""
    return bool(entry & _LEVEL) and entry >> 8 & 7 in (Delivery.FIXED, Delivery.LOWEST)


class IoApic:
    """`router` takes its interrupts to local APICs; its owner passes the ends of level-triggered ones to `ended`."""

    _SAVED = ("_id", "_select", "_lines")

    def __init__(self, router: InterruptRouter) -> None:
        self._router = router
        self._id = 0
        self._select = 0
        #: which pins are asserted
        self._lines = 0
        self._entries = [_MASKED] * PINS

    def window(self, address: int) -> Window:
        """Its page of device memory."""
        return Window(address, _PAGE, self._read, self._write)

    def line(self, pin: int) -> Callable[[bool], None]:
        """A function that drives one pin."""

        def drive(level: bool) -> None:
            self.set_pin(pin, level)

        return drive

    def set_pin(self, pin: int, level: bool) -> None:
        """Assert a pin, or no longer."""
        bit = 1 << pin
        rises = level and not self._lines & bit
        self._lines = self._lines | bit if level else self._lines & ~bit
        entry = self._entries[pin]
        if _is_level(entry):
            self._serve(pin)
        elif rises and not entry & _MASKED:
            self._send(entry)

    def ended(self, vector: int) -> None:
        """A local APIC's EOI message: who waits for it may ask again, and does so if its line is still asserted."""
        for pin, entry in enumerate(self._entries):
            if entry & 0xFF == vector and entry & _REMOTE_IRR:
                self._entries[pin] = entry & ~_REMOTE_IRR
                if _is_level(entry):
                    self._serve(pin)

    def _serve(self, pin: int) -> None:
        """Send the interrupt of a level-triggered pin, unless it is masked or one is on its way."""
        entry = self._entries[pin]
        if self._lines & 1 << pin and not entry & (_MASKED | _REMOTE_IRR) and self._send(entry):
            self._entries[pin] |= _REMOTE_IRR

    def _send(self, entry: int) -> bool:
        return self._router.send_pin(
            destination=entry >> 56,
            logical=bool(entry & _LOGICAL),
            mode=Delivery(entry >> 8 & 7),
            vector=entry & 0xFF,
            level=_is_level(entry),
        )

    # Registers

    def _read(self, offset: int, size: int) -> int:
        place = offset & _DECODED
        if place == _SELECT:
            return self._select
        # The data sheet has accesses of 32 bits only.
        return self._read_register(self._select) if place == _WINDOW and size == 4 else 0

    def _write(self, offset: int, size: int, value: int) -> None:
        place = offset & _DECODED
        if place == _SELECT:
            self._select = value & 0xFF
        elif place == _WINDOW and size == 4:
            self._write_register(self._select, value)

    def _read_register(self, index: int) -> int:
        if index in (_ID, _ARBITRATION):
            return self._id
        if index == _VERSION:
            return _VERSION_VALUE
        pin, high = divmod(index - _REDIRECTIONS, 2)
        return self._entries[pin] >> 32 * high & _LOW if 0 <= pin < PINS else 0

    def _write_register(self, index: int, value: int) -> None:
        if index == _ID:
            self._id = value & _ID_WRITABLE
        pin, high = divmod(index - _REDIRECTIONS, 2)
        if not 0 <= pin < PINS:
            return
        entry = self._entries[pin]
        if high:
            self._entries[pin] = entry & _LOW | (value & _HIGH_WRITABLE) << 32
            return
        entry = entry & ~_LOW | value & _LOW_WRITABLE | entry & _REMOTE_IRR
        # Only level-triggered pins have the bit. Linux clears it so, for this version has no EOI register.
        if not entry & _LEVEL:
            entry &= ~_REMOTE_IRR
        self._entries[pin] = entry
        if _is_level(entry):
            self._serve(pin)

    # Snapshots

    def dump(self) -> dict[str, Any]:
        """For a snapshot."""
        return save_integers(self, self._SAVED) | {"entries": list(self._entries)}

    def load(self, state: dict[str, Any]) -> None:
        """From a snapshot: after the devices that drive its pins, before the local APICs."""
        entries = [checked_int(entry) for entry in state["entries"]]
        allowed = _HIGH_WRITABLE << 32 | _LOW_WRITABLE | _REMOTE_IRR
        if len(entries) != PINS or any(entry & ~allowed for entry in entries):
            raise ValueError("other redirection entries than an I/O APIC has")
        load_integers(self, self._SAVED, state)
        self._id &= _ID_WRITABLE
        self._select &= 0xFF
        self._lines &= (1 << PINS) - 1
        self._entries = entries
