# SPDX-License-Identifier: GPL-2.0-or-later
"""A 16550A serial port (National Semiconductor PC16550D), COM1 by default."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["Serial8250"]

_IER_RX, _IER_TX = 1, 2
_LCR_DLAB = 0x80
_LSR_DATA, _LSR_TX_EMPTY = 0x01, 0x60
_IIR_NONE, _IIR_TX, _IIR_RX, _IIR_FIFO = 1, 2, 4, 0xC0
_MCR_OUT2, _MCR_LOOP = 8, 0x10
_MSR_READY = 0xB0


class Serial8250:
    """Bytes written are sent at once, so the transmitter is always empty."""

    def __init__(self, set_irq: Callable[[bool], None], output: Callable[[bytes], None], base: int = 0x3F8) -> None:
        self.base = base
        self.output = output
        self._set_irq = set_irq
        self._received: deque[int] = deque()
        self._ier = self._lcr = self._mcr = self._scratch = 0
        self._divisor = 1
        self._fifo = False
        self._tx_pending = False

    def feed(self, data: bytes) -> None:
        """Bytes from the other end of the line."""
        self._received.extend(data)
        self._update()

    def _update(self) -> None:
        wanted = (self._ier & _IER_RX and self._received) or (self._ier & _IER_TX and self._tx_pending)
        self._set_irq(bool(wanted) and bool(self._mcr & _MCR_OUT2))

    def read(self, port: int, size: int) -> int:
        """IN; only byte accesses mean anything."""
        register = port - self.base
        if register == 5:
            return _LSR_TX_EMPTY | (_LSR_DATA if self._received else 0)
        if register == 0:
            if self._lcr & _LCR_DLAB:
                return self._divisor & 0xFF
            value = self._received.popleft() if self._received else 0
            self._update()
            return value
        if register == 1:
            return self._divisor >> 8 if self._lcr & _LCR_DLAB else self._ier
        if register == 2:
            return self._identify() | (_IIR_FIFO if self._fifo else 0)
        if register == 6:
            if self._mcr & _MCR_LOOP:
                # Loop-back: RTS, DTR, OUT1, OUT2 come back as CTS, DSR, RI, DCD; Linux probes with it.
                mcr = self._mcr
                return (mcr & 2) << 3 | (mcr & 1) << 5 | (mcr & 4) << 4 | (mcr & 8) << 4
            return _MSR_READY
        return {3: self._lcr, 4: self._mcr, 7: self._scratch}.get(register, 0)

    def _identify(self) -> int:
        if self._ier & _IER_RX and self._received:
            return _IIR_RX
        if self._ier & _IER_TX and self._tx_pending:
            self._tx_pending = False
            self._update()
            return _IIR_TX
        return _IIR_NONE

    def write(self, port: int, size: int, value: int) -> None:
        """OUT."""
        value &= 0xFF
        register = port - self.base
        if register == 0:
            if self._lcr & _LCR_DLAB:
                self._divisor = self._divisor & 0xFF00 | value
            else:
                if not self._mcr & _MCR_LOOP:
                    self.output(bytes((value,)))
                self._tx_pending = True
                if self._ier:
                    self._update()
        elif register == 1:
            if self._lcr & _LCR_DLAB:
                self._divisor = self._divisor & 0xFF | value << 8
            else:
                if value & _IER_TX and not self._ier & _IER_TX:
                    self._tx_pending = True
                self._ier = value & 0xF
                self._update()
        elif register == 2:
            self._fifo = bool(value & 1)
            if value & 2:
                self._received.clear()
        elif register == 3:
            self._lcr = value
        elif register == 4:
            self._mcr = value & 0x1F
            self._update()
        elif register == 7:
            self._scratch = value

    def state(self) -> dict[str, Any]:
        """For a snapshot."""
        return {
            "received": bytes(self._received),
            "registers": [self._ier, self._lcr, self._mcr, self._scratch, self._divisor],
            "fifo": self._fifo,
            "tx_pending": self._tx_pending,
        }

    def load(self, state: dict[str, Any]) -> None:
        """From a snapshot."""
        self._received = deque(state["received"])
        self._ier, self._lcr, self._mcr, self._scratch, self._divisor = state["registers"]
        self._fifo, self._tx_pending = state["fifo"], state["tx_pending"]
        self._update()
