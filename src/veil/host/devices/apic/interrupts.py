# SPDX-License-Identifier: GPL-2.0-or-later
"""How interrupts find their processors: between processors (ICR) and from devices (messages, the I/O APIC's pins).

APM volume 2, 16.5 (interprocessor interrupts) and 16.13; PCI local bus specification 3.0, 6.8 (MSI and MSI-X).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.formats.board import LOCAL_APIC
from veil.host.devices.apic.apic import Delivery

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from veil.host.devices.apic.apic import LocalApic

__all__ = ["InterruptRouter"]

_MESSAGES = 0xFFF00000

_LOGICAL = 1 << 11
_ASSERT = 1 << 14
_LEVEL = 1 << 15
_SELF, _ALL, _OTHERS = 1, 2, 3
_LOWEST_VECTOR = 16
_ILLEGAL_SENT = 1 << 5

_MSI_LOGICAL = 1 << 2
_MSI_REDIRECT = 1 << 3

#: A device has no business to start or stop processors.
_MODES_OF_DEVICES = (Delivery.FIXED, Delivery.LOWEST, Delivery.NMI)


class InterruptRouter:
    """Callbacks get the index of the VCPU; INIT, SIPI and NMI are the hypervisor's business."""

    def __init__(self) -> None:
        self.apics: Sequence[LocalApic] = ()
        self.on_init: Callable[[int], None] | None = None
        self.on_sipi: Callable[[int], None] | None = None
        self.on_nmi: Callable[[int], None] | None = None
        #: hears of the EOI of each level-triggered interrupt
        self.on_end: Callable[[int], None] = lambda vector: None

    def end(self, vector: int) -> None:
        """A local APIC's EOI of a level-triggered interrupt."""
        self.on_end(vector)

    def send_ipi(self, sender: LocalApic, icr: int, destination: int) -> None:
        """A write of the interrupt command register."""
        shorthand = icr >> 18 & 3
        wide = sender.x2apic
        logical = bool(icr & _LOGICAL)
        if shorthand == _SELF:
            targets = [sender]
        elif shorthand == _ALL:
            targets = list(self.apics)
        elif shorthand == _OTHERS:
            targets = [apic for apic in self.apics if apic is not sender]
        else:
            targets = [apic for apic in self.apics if apic.matches(destination, logical=logical, wide=wide)]
        mode = Delivery(icr >> 8 & 7)
        vector = icr & 0xFF
        if mode in (Delivery.FIXED, Delivery.LOWEST) and vector < _LOWEST_VECTOR:
            sender.send_error(_ILLEGAL_SENT)
            return
        if mode == Delivery.INIT and icr & _LEVEL and not icr & _ASSERT:
            # INIT level de-assert only synchronised the arbitration IDs of old busses.
            return
        self._deliver(targets, mode, vector)

    def send_message(self, address: int, data: int) -> None:
        """A device writes to the message area; anything else is not an interrupt, and not guest memory either."""
        if address & _MESSAGES != LOCAL_APIC or address >> 32:
            return
        destination = address >> 12 & 0xFF
        logical = bool(address & _MSI_LOGICAL)
        targets = [apic for apic in self.apics if apic.matches(destination, logical=logical, wide=False)]
        mode = Delivery(data >> 8 & 7)
        if mode == Delivery.FIXED and logical and address & _MSI_REDIRECT:
            mode = Delivery.LOWEST
        if mode in _MODES_OF_DEVICES:
            self._deliver(targets, mode, data & 0xFF)

    def send_pin(self, *, destination: int, logical: bool, mode: Delivery, vector: int, level: bool) -> bool:
        """An interrupt of the I/O APIC; False: no local APIC takes it.

        Of the modes, those are left out that are a message's neither, and ExtINT: the 8259s have a wire of their own.
        """
        targets = [apic for apic in self.apics if apic.matches(destination, logical=logical, wide=False)]
        return mode in _MODES_OF_DEVICES and self._deliver(targets, mode, vector, level=level)

    def _deliver(self, targets: list[LocalApic], mode: Delivery, vector: int, *, level: bool = False) -> bool:
        """False: a fixed interrupt that no target takes."""
        if mode == Delivery.LOWEST and targets:
            able = [apic for apic in targets if apic.enabled and apic.software_enabled] or targets
            able.sort(key=lambda apic: apic.processor_priority())
            return able[0].accept(vector, level=level)
        if mode in (Delivery.FIXED, Delivery.LOWEST):
            taken = [apic.accept(vector, level=level) for apic in targets]
            return any(taken)
        if mode == Delivery.NMI:
            self._tell(self.on_nmi, targets)
        elif mode == Delivery.INIT:
            for apic in targets:
                apic.reset()
            self._tell(self.on_init, targets)
        elif mode == Delivery.STARTUP:
            self._tell(self.on_sipi, targets)
        return True

    def _tell(self, callback: Callable[[int], None] | None, targets: list[LocalApic]) -> None:
        if callback is not None:
            for index, apic in enumerate(self.apics):
                if apic in targets:
                    callback(index)
