# SPDX-License-Identifier: GPL-2.0-or-later
"""Two cascaded 8259A interrupt controllers, edge-triggered, fully nested."""

from __future__ import annotations

from typing import Any

__all__ = ["Pic"]

_CASCADE = 2


class _Chip:
    def __init__(self) -> None:
        self.irr = self.isr = 0
        self.imr = 0xFF
        self.offset = 0
        self.step = 0
        self.auto_eoi = False
        self.read_isr = False
        self.lines = 0

    def highest(self) -> int | None:
        ready = self.irr & ~self.imr
        if not ready:
            return None
        line = (ready & -ready).bit_length() - 1
        if self.isr and (self.isr & -self.isr).bit_length() - 1 <= line:
            return None
        return line

    def command(self, value: int) -> None:
        if value & 0x10:  # ICW1
            self.step = 2
            self.irr = self.isr = self.imr = 0
            self.auto_eoi = self.read_isr = False
        elif value & 8:  # OCW3
            if value & 2:
                self.read_isr = bool(value & 1)
        elif value & 0x20:  # OCW2, EOI
            if value & 0x40:
                self.isr &= ~(1 << (value & 7))
            else:
                self.isr &= self.isr - 1

    def data(self, value: int) -> None:
        if self.step == 2:
            self.offset = value & 0xF8
            self.step = 3
        elif self.step == 3:
            self.step = 4
        elif self.step == 4:
            self.auto_eoi = bool(value & 2)
            self.step = 0
        else:
            self.imr = value

    def take(self, line: int) -> int:
        self.irr &= ~(1 << line)
        if not self.auto_eoi:
            self.isr |= 1 << line
        return self.offset + line


class Pic:
    """Ports 20h, 21h (IRQ 0 to 7) and A0h, A1h (8 to 15)."""

    PORTS = (0x20, 0x21, 0xA0, 0xA1)

    def __init__(self) -> None:
        self._chips = (_Chip(), _Chip())

    def set_line(self, irq: int, level: bool) -> None:
        """An interrupt line rises or falls."""
        chip, bit = self._chips[irq >> 3], 1 << (irq & 7)
        if level and not chip.lines & bit:
            chip.irr |= bit
        if not level:
            chip.irr &= ~bit
        chip.lines = chip.lines | bit if level else chip.lines & ~bit

    def pulse(self, irq: int) -> None:
        """An edge without a level: a timer tick."""
        self.set_line(irq, False)
        self._chips[irq >> 3].irr |= 1 << (irq & 7)

    def _cascade(self) -> None:
        master, slave = self._chips
        if slave.highest() is not None:
            master.irr |= 1 << _CASCADE
        else:
            master.irr &= ~(1 << _CASCADE)

    def pending(self) -> int | None:
        """The vector that an acknowledge would give now."""
        self._cascade()
        master, slave = self._chips
        line = master.highest()
        if line is None:
            return None
        if line == _CASCADE:
            second = slave.highest()
            return slave.offset + second if second is not None else None
        return master.offset + line

    def acknowledge(self) -> int:
        """INTA: the vector, which is in service from now on; the spurious one if nothing is pending."""
        self._cascade()
        master, slave = self._chips
        line = master.highest()
        if line is None:
            return master.offset + 7
        vector = master.take(line)
        if line == _CASCADE:
            second = slave.highest()
            return slave.take(second) if second is not None else slave.offset + 7
        return vector

    def read(self, port: int, size: int) -> int:
        """IN."""
        chip = self._chips[port >> 7]
        if port & 1:
            return chip.imr
        return chip.isr if chip.read_isr else chip.irr

    def write(self, port: int, size: int, value: int) -> None:
        """OUT."""
        chip = self._chips[port >> 7]
        if port & 1:
            chip.data(value & 0xFF)
        else:
            chip.command(value & 0xFF)

    def state(self) -> dict[str, Any]:
        """For a snapshot."""
        return {"chips": [dict(vars(chip)) for chip in self._chips]}

    def load(self, state: dict[str, Any]) -> None:
        """From a snapshot."""
        for chip, saved in zip(self._chips, state["chips"], strict=True):
            vars(chip).update(saved)
