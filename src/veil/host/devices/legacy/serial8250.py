# SPDX-License-Identifier: GPL-2.0-or-later
"""The serial port COM1: a 16550A (National Semiconductor, PC16550D data sheet) with an infinitely fast line.

A byte is sent the moment it is written, so the transmitter is always empty. What arrives waits in a queue without bound
instead of overrunning a FIFO of 16 bytes: the host's input is never lost.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from veil.host.devices._state import load_integers, save_integers

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.host.devices.bus import IoBus

__all__ = ["COM1_IRQ", "COM1_PORT", "Serial8250"]

COM1_PORT = 0x3F8
COM1_IRQ = 4

_IER_RDA = 0x01
_IER_THRE = 0x02
_IER_MSI = 0x08
_IER_MASK = 0x0F

_IIR_NONE = 0x01
_IIR_MODEM = 0x00
_IIR_THRE = 0x02
_IIR_RDA = 0x04
_IIR_TIMEOUT = 0x0C
_IIR_FIFO_ENABLED = 0xC0

_FCR_ENABLE = 0x01
_FCR_CLEAR_RECEIVER = 0x02
_TRIGGER_LEVELS = (1, 4, 8, 14)

_LCR_DLAB = 0x80

_MCR_DTR = 0x01
_MCR_RTS = 0x02
_MCR_OUT1 = 0x04
_MCR_OUT2 = 0x08
_MCR_LOOP = 0x10
_MCR_MASK = 0x1F

_LSR_DR = 0x01
_LSR_TRANSMITTER_EMPTY = 0x60

_MSR_CTS = 0x10
_MSR_DSR = 0x20
_MSR_RI = 0x40
_MSR_DCD = 0x80
#: The other end is there and ready.
_MSR_CONNECTED = _MSR_CTS | _MSR_DSR | _MSR_DCD

_BYTES = [bytes((value,)) for value in range(256)]


def _ignore(data: bytes) -> None:
    """Nobody listens."""


class Serial8250:
    """Registers at `port` to `port` + 7; `set_irq(level)` drives the interrupt line."""

    _SAVED = (
        "_ier", "_lcr", "_mcr", "_msr_delta", "_scratch", "_divisor_low", "_divisor_high", "_fifo", "_trigger",
        "_thre_pending",
    )  # fmt: skip

    def __init__(self, set_irq: Callable[[bool], None]) -> None:
        self._set_irq = set_irq
        #: gets every byte that the guest sends
        self.output: Callable[[bytes], None] = _ignore
        self._received: deque[int] = deque()
        self._line = False
        self._ier = 0
        self._lcr = 0
        self._mcr = 0
        self._msr_delta = 0
        self._scratch = 0
        self._divisor_low = 12
        self._divisor_high = 0
        self._fifo = False
        self._trigger = 1
        self._thre_pending = False

    def attach(self, bus: IoBus, port: int = COM1_PORT) -> None:
        """Put the registers on a bus."""
        bus.add_register(port, self._read_data, self._write_data)
        bus.add_register(port + 1, self._read_ier, self._write_ier)
        bus.add_register(port + 2, self._read_iir, self._write_fcr)
        bus.add_register(port + 3, self._read_lcr, self._write_lcr)
        bus.add_register(port + 4, self._read_mcr, self._write_mcr)
        bus.add_register(port + 5, self._read_lsr, None)
        bus.add_register(port + 6, self._read_msr, None)
        bus.add_register(port + 7, self._read_scratch, self._write_scratch)

    def feed(self, data: bytes) -> None:
        """Bytes arrive on the line."""
        self._received.extend(data)
        self._update()

    # Interrupts

    def _source(self) -> int:
        """The interrupt of the highest priority, as IIR says it."""
        ier = self._ier
        if ier & _IER_RDA and self._received:
            return _IIR_RDA if not self._fifo or len(self._received) >= self._trigger else _IIR_TIMEOUT
        if ier & _IER_THRE and self._thre_pending:
            return _IIR_THRE
        if ier & _IER_MSI and self._msr_delta:
            return _IIR_MODEM
        return _IIR_NONE

    def _update(self) -> None:
        # On a PC, OUT2 gates the UART's interrupt; in loop-back mode the pin is inactive.
        level = self._mcr & (_MCR_OUT2 | _MCR_LOOP) == _MCR_OUT2 and self._source() != _IIR_NONE
        if level != self._line:
            self._line = level
            self._set_irq(level)

    # Registers

    def _read_data(self) -> int:
        if self._lcr & _LCR_DLAB:
            return self._divisor_low
        if not self._received:
            return 0
        value = self._received.popleft()
        if not self._received:
            self._update()
        return value

    def _write_data(self, value: int) -> None:
        if self._lcr & _LCR_DLAB:
            self._divisor_low = value
            return
        if self._mcr & _MCR_LOOP:
            self._received.append(value)
            self._update()
        else:
            self.output(_BYTES[value])
        if self._ier & _IER_THRE:
            # The holding register fills and empties at once: the line falls and rises again, which an edge-triggered
            # interrupt controller must see.
            self._thre_pending = False
            self._update()
            self._thre_pending = True
            self._update()

    def _read_ier(self) -> int:
        return self._divisor_high if self._lcr & _LCR_DLAB else self._ier

    def _write_ier(self, value: int) -> None:
        if self._lcr & _LCR_DLAB:
            self._divisor_high = value
            return
        enabled = value & ~self._ier
        self._ier = value & _IER_MASK
        # Enabling the interrupt while the holding register is empty raises it; Linux tests for that.
        if enabled & _IER_THRE:
            self._thre_pending = True
        self._update()

    def _read_iir(self) -> int:
        source = self._source()
        if source == _IIR_THRE:
            self._thre_pending = False
            self._update()
        return source | _IIR_FIFO_ENABLED if self._fifo else source

    def _write_fcr(self, value: int) -> None:
        fifo = bool(value & _FCR_ENABLE)
        if value & _FCR_CLEAR_RECEIVER or fifo != self._fifo:
            # What the FIFO could hold is lost; what has not 'arrived' yet is not.
            for _ in range(min(16, len(self._received))):
                self._received.popleft()
        self._fifo = fifo
        self._trigger = _TRIGGER_LEVELS[value >> 6 & 3] if fifo else 1
        self._update()

    def _read_lcr(self) -> int:
        return self._lcr

    def _write_lcr(self, value: int) -> None:
        self._lcr = value

    def _read_mcr(self) -> int:
        return self._mcr

    def _write_mcr(self, value: int) -> None:
        before = self._modem_lines()
        self._mcr = value & _MCR_MASK
        after = self._modem_lines()
        changed = before ^ after
        # Delta bits: a change of CTS, DSR, DCD; for RI only its end (TERI).
        self._msr_delta |= changed >> 4 & 0x0B | (changed & before & _MSR_RI) >> 4
        self._update()

    def _modem_lines(self) -> int:
        mcr = self._mcr
        if not mcr & _MCR_LOOP:
            return _MSR_CONNECTED
        return (
            (_MSR_CTS if mcr & _MCR_RTS else 0)
            | (_MSR_DSR if mcr & _MCR_DTR else 0)
            | (_MSR_RI if mcr & _MCR_OUT1 else 0)
            | (_MSR_DCD if mcr & _MCR_OUT2 else 0)
        )

    def _read_lsr(self) -> int:
        return _LSR_TRANSMITTER_EMPTY | _LSR_DR if self._received else _LSR_TRANSMITTER_EMPTY

    def _read_msr(self) -> int:
        value = self._modem_lines() | self._msr_delta
        if self._msr_delta:
            self._msr_delta = 0
            self._update()
        return value

    def _read_scratch(self) -> int:
        return self._scratch

    def _write_scratch(self, value: int) -> None:
        self._scratch = value

    # Snapshots

    def dump(self) -> dict[str, Any]:
        return save_integers(self, self._SAVED) | {"received": bytes(self._received), "line": self._line}

    def load(self, state: dict[str, Any]) -> None:
        """From a snapshot; the interrupt controller is restored on its own."""
        received = bytes(state["received"])
        self._line = bool(state["line"])
        load_integers(self, self._SAVED, state)
        self._received = deque(received)
