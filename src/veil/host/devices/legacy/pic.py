# SPDX-License-Identifier: GPL-2.0-or-later
"""The two 8259A interrupt controllers of a PC (Intel, 8259A data sheet), with the ELCR of later chip sets.

The slave hangs on the master's input 2. An input is edge-triggered unless its ELCR bit is set; an edge that goes away
before the processor has acknowledged it is forgotten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from veil.host.devices._state import load_integers, save_integers

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.host.devices.bus import IoBus

__all__ = ["Pic", "SharedLine"]

_MASTER_PORT, _SLAVE_PORT = 0x20, 0xA0
_MASTER_ELCR, _SLAVE_ELCR = 0x4D0, 0x4D1
_CASCADE = 2
_SPURIOUS = 7

_ICW1 = 0x10
_ICW1_ICW4 = 0x01
_ICW1_SINGLE = 0x02
_ICW4_AEOI = 0x02
_ICW4_SPECIAL_NESTED = 0x10
_OCW3 = 0x08
_OCW3_READ_ISR = 0x01
_OCW3_READ = 0x02
_OCW3_POLL = 0x04
_OCW3_SPECIAL_MASK = 0x20
_OCW3_SET_SPECIAL_MASK = 0x40


class _Chip:
    """One 8259A."""

    SAVED = (
        "irr", "isr", "imr", "lines", "elcr", "base", "step", "needs_icw4", "single", "auto_eoi", "rotate_auto_eoi",
        "special_nested", "special_mask", "read_isr", "poll", "lowest",
    )  # fmt: skip

    def __init__(self, elcr_mask: int, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._elcr_mask = elcr_mask
        self.irr = 0
        self.isr = 0
        self.imr = 0
        #: the levels of the inputs
        self.lines = 0
        self.elcr = 0
        self.base = 0
        #: which ICW comes next; 0: initialised
        self.step = 0
        self.needs_icw4 = False
        self.single = False
        self.auto_eoi = False
        self.rotate_auto_eoi = False
        self.special_nested = False
        self.special_mask = False
        self.read_isr = False
        self.poll = False
        #: the input of the lowest priority
        self.lowest = 7

    def set_line(self, line: int, level: bool) -> None:
        bit = 1 << line
        if level:
            if not self.lines & bit or self.elcr & bit:
                self.irr |= bit
            self.lines |= bit
        else:
            self.irr &= ~bit
            self.lines &= ~bit

    def request(self) -> int | None:
        """The input that wants and may have service, by priority."""
        wanted = self.irr & ~self.imr
        if not wanted:
            return None
        blocking = self.isr & ~self.imr if self.special_mask else self.isr
        for step in range(1, 9):
            line = self.lowest + step & 7
            bit = 1 << line
            # In the special fully nested mode the master lets a second interrupt of the slave through.
            if blocking & bit and not (self.special_nested and line == _CASCADE and wanted & bit):
                return None
            if wanted & bit:
                return line
        return None

    def acknowledge(self) -> int:
        """INTA: the input that is served now; without a request it is the spurious one, which enters no ISR."""
        line = self.request()
        if line is None:
            return _SPURIOUS
        bit = 1 << line
        if not self.elcr & bit:
            self.irr &= ~bit
        if self.auto_eoi:
            if self.rotate_auto_eoi:
                self.lowest = line
        else:
            self.isr |= bit
        return line

    def read_command(self) -> int:
        if self.poll:
            self.poll = False
            line = self.request()
            if line is None:
                return 0
            self.acknowledge()
            self._changed()
            return 0x80 | line
        return self.isr if self.read_isr else self.irr

    def read_data(self) -> int:
        return self.read_command() if self.poll else self.imr

    def write_command(self, value: int) -> None:
        if value & _ICW1:
            # Initialisation forgets edges; level inputs ask again.
            self.irr = self.lines & self.elcr
            self.isr = self.imr = 0
            self.lowest = 7
            self.auto_eoi = self.rotate_auto_eoi = self.special_nested = self.special_mask = False
            self.read_isr = self.poll = False
            self.needs_icw4 = bool(value & _ICW1_ICW4)
            self.single = bool(value & _ICW1_SINGLE)
            self.step = 2
        elif value & _OCW3:
            self.poll = bool(value & _OCW3_POLL)
            if value & _OCW3_READ:
                self.read_isr = bool(value & _OCW3_READ_ISR)
            if value & _OCW3_SET_SPECIAL_MASK:
                self.special_mask = bool(value & _OCW3_SPECIAL_MASK)
        else:
            self._ocw2(value >> 5, value & 7)
        self._changed()

    def _ocw2(self, command: int, line: int) -> None:
        if command in (0, 4):  # rotate in automatic EOI mode: clear, set
            self.rotate_auto_eoi = command == 4
        elif command in (1, 5):  # EOI of the highest input in service; and rotate
            for step in range(1, 9):
                highest = self.lowest + step & 7
                if self.isr & 1 << highest and not (self.special_mask and self.imr & 1 << highest):
                    self.isr &= ~(1 << highest)
                    if command == 5:
                        self.lowest = highest
                    return
        elif command in (3, 7):  # EOI of this input; and rotate
            self.isr &= ~(1 << line)
            if command == 7:
                self.lowest = line
        elif command == 6:  # set priority
            self.lowest = line

    def write_data(self, value: int) -> None:
        if self.step == 0:
            self.imr = value
        elif self.step == 2:
            self.base = value & 0xF8
            self.step = 3 if not self.single else 4 if self.needs_icw4 else 0
        elif self.step == 3:
            # Which controller is the slave is wired on a PC.
            self.step = 4 if self.needs_icw4 else 0
        else:
            self.auto_eoi = bool(value & _ICW4_AEOI)
            self.special_nested = bool(value & _ICW4_SPECIAL_NESTED)
            self.step = 0
        self._changed()

    def read_elcr(self) -> int:
        return self.elcr

    def write_elcr(self, value: int) -> None:
        self.elcr = value & self._elcr_mask
        self.irr |= self.lines & self.elcr
        self._changed()


class Pic:
    """Master and slave; `vector` is what the processor would get from an acknowledge now, None if INTR is low."""

    def __init__(self) -> None:
        # The timer, keyboard, cascade, clock and coprocessor inputs are edge-triggered on every PC.
        self._master = _Chip(0xF8, self._update)
        self._slave = _Chip(0xDE, self._update)
        self.vector: int | None = None

    def attach(self, bus: IoBus) -> None:
        """Put the registers on a bus."""
        for chip, port, elcr in (
            (self._master, _MASTER_PORT, _MASTER_ELCR),
            (self._slave, _SLAVE_PORT, _SLAVE_ELCR),
        ):
            bus.add_register(port, chip.read_command, chip.write_command)
            bus.add_register(port + 1, chip.read_data, chip.write_data)
            bus.add_register(elcr, chip.read_elcr, chip.write_elcr)

    def set_irq(self, irq: int, level: bool) -> None:
        """Drive an input, 0 to 15 but 2."""
        if irq < 8:
            self._master.set_line(irq, level)
        else:
            self._slave.set_line(irq - 8, level)
        self._update()

    def line(self, irq: int) -> Callable[[bool], None]:
        """A function that drives one input."""

        def drive(level: bool) -> None:
            self.set_irq(irq, level)

        return drive

    def _update(self) -> None:
        slave = self._slave.request()
        master = self._master
        # The slave's INT output is the master's input 2; it falls and rises with each acknowledge.
        if slave is None:
            master.set_line(_CASCADE, False)
        elif not master.irr & 1 << _CASCADE:
            master.set_line(_CASCADE, False)
            master.set_line(_CASCADE, True)
        line = master.request()
        if line is None:
            self.vector = None
        elif line == _CASCADE:
            self.vector = self._slave.base | (_SPURIOUS if slave is None else slave)
        else:
            self.vector = master.base | line

    def acknowledge(self) -> int:
        """INTA: the vector, whose input is in service from now on; a spurious vector if nothing is requested."""
        line = self._master.acknowledge()
        # Without a request the master alone answers: its input 2 has no part in a spurious interrupt.
        vector = self._slave.base | self._slave.acknowledge() if line == _CASCADE else self._master.base | line
        self._update()
        return vector

    def dump(self) -> dict[str, Any]:
        return {
            "master": save_integers(self._master, _Chip.SAVED),
            "slave": save_integers(self._slave, _Chip.SAVED),
        }

    def load(self, state: dict[str, Any]) -> None:
        load_integers(self._master, _Chip.SAVED, state["master"])
        load_integers(self._slave, _Chip.SAVED, state["slave"])
        self._update()


class SharedLine:
    """An interrupt line that several devices drive: it is high while one of them wants it so."""

    def __init__(self, drive: Callable[[bool], None]) -> None:
        self._drive = drive
        self._inputs = 0
        self._high = 0

    def input(self) -> Callable[[bool], None]:
        """One device's end."""
        mine = 1 << self._inputs
        self._inputs += 1

        def drive(level: bool) -> None:
            self._high = self._high | mine if level else self._high & ~mine
            self._drive(bool(self._high))

        return drive
