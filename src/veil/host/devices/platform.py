# SPDX-License-Identifier: GPL-2.0-or-later
"""The board: all devices behind ports, MMIO and MSRs, and the interrupt controllers of every VCPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from veil.host.devices.acpi_pm import AcpiPm
from veil.host.devices.lapic import APIC_BASE, Delivery, LocalApic, decode_icr, route
from veil.host.devices.pci import PciBus
from veil.host.devices.pic import Pic
from veil.host.devices.pit import Pit
from veil.host.devices.rtc import Rtc
from veil.host.devices.serial import Serial8250
from veil.host.devices.virtio_console import VirtioConsole
from veil.host.devices.virtqueue import DmaMemory

__all__ = ["AGENT_PORT", "Platform"]

AGENT_PORT = "veil.agent"

_SERIAL_IRQ, _PIT_IRQ = 4, 0
_APIC_MSRS = frozenset((0x1B, 0x6E0, *range(0x800, 0x900)))
_RESET_PORT, _RESET = 0xCF9, 0x04

# MSRs that Linux asks the host for, as KVM answers them: without SYSCFG.MEM_ENCRYPT and HWCR.SMMLOCK it hides its SEV
# flags from /proc/cpuinfo.
_MSRS = {
    0x17: 0,
    0x8B: 0x8301039,
    0xFE: 0,
    0xC0010000: 0,
    0xC0010001: 0,
    0xC0010002: 0,
    0xC0010003: 0,
    0xC0010004: 0,
    0xC0010005: 0,
    0xC0010006: 0,
    0xC0010007: 0,
    0xC0010010: 1 << 23,
    0xC0010015: 1,
    0xC001001F: 0,
    0xC0011020: 0,
    0xC0011029: 0,
}

Reader = Callable[[int, int], int]
Writer = Callable[[int, int, int], None]


class Platform:
    """Devices of a guest with some VCPUs. `console` gets what the serial port and hvc0 print."""

    def __init__(
        self,
        memory: DmaMemory,
        *,
        vcpus: int,
        now_ns: Callable[[], int],
        tsc: Callable[[], int],
        console: Callable[[bytes], None],
    ) -> None:
        self._now = now_ns
        self.pic = Pic()
        self.pit = Pit(now_ns, lambda: self.pic.pulse(_PIT_IRQ))
        self.rtc = Rtc()
        self.serial = Serial8250(lambda level: self.pic.set_line(_SERIAL_IRQ, level), console)
        self.apics = [LocalApic(index, now_ns=now_ns, tsc=tsc, send=self._send_ipi) for index in range(vcpus)]
        self.pci = PciBus()
        self.console = VirtioConsole(memory, self._send_msi, [None, AGENT_PORT])
        self.console.ports[0].on_data = console
        self.agent = self.console.ports[1]
        self.pci.add(1, self.console)
        #: INIT and start-up IPIs, the host's affair: called with the VCPU
        self.on_init: Callable[[int], None] | None = None
        self.on_sipi: Callable[[int], None] | None = None
        #: the guest asked for a reset
        self.on_reset: Callable[[], None] | None = None
        #: the guest switched off
        self.on_power_off: Callable[[], None] | None = None
        self.power = AcpiPm(self._switch_off)
        self._readers: dict[int, Reader] = {}
        self._writers: dict[int, Writer] = {}
        serial_ports = tuple(range(self.serial.base, self.serial.base + 8))
        for ports, device in (
            (serial_ports, self.serial),
            (Pic.PORTS, self.pic),
            (Pit.PORTS, self.pit),
            (Rtc.PORTS, self.rtc),
            (PciBus.PORTS, self.pci),
            (AcpiPm.PORTS, self.power),
        ):
            for port in ports:
                self._readers[port] = device.read
                self._writers[port] = device.write
        self._writers[_RESET_PORT] = self._reset_write

    # Ports, MMIO, MSRs

    def io_read(self, port: int, size: int) -> int:
        """IN; nobody there reads as ones."""
        reader = self._readers.get(port)
        if reader is not None:
            return reader(port, size)
        found = self.pci.find(port, io=True)
        if found is None:
            return (1 << 8 * size) - 1
        function, bar, offset = found
        return function.bar_read(bar, offset, size)

    def io_write(self, port: int, size: int, value: int) -> None:
        """OUT; nobody there ignores it."""
        writer = self._writers.get(port)
        if writer is not None:
            writer(port, size, value)
            return
        found = self.pci.find(port, io=True)
        if found is not None:
            function, bar, offset = found
            function.bar_write(bar, offset, size, value)

    def mmio_read(self, gpa: int, size: int, vcpu: int = 0) -> int:
        """A load from an address without memory."""
        if gpa & ~0xFFF == APIC_BASE:
            return self.apics[vcpu].read_mmio(gpa & 0xFFF)
        found = self.pci.find(gpa, io=False)
        if found is None:
            return (1 << 8 * size) - 1
        function, bar, offset = found
        return function.bar_read(bar, offset, size)

    def mmio_write(self, gpa: int, size: int, value: int, vcpu: int = 0) -> None:
        """A store to an address without memory."""
        if gpa & ~0xFFF == APIC_BASE:
            self.apics[vcpu].write_mmio(gpa & 0xFFF, value)
            return
        found = self.pci.find(gpa, io=False)
        if found is not None:
            function, bar, offset = found
            function.bar_write(bar, offset, size, value)

    def msr_read(self, vcpu: int, msr: int) -> int | None:
        """RDMSR; None is #GP."""
        if msr in _APIC_MSRS:
            return self.apics[vcpu].read_msr(msr)
        return _MSRS.get(msr)

    def msr_write(self, vcpu: int, msr: int, value: int) -> bool:
        """WRMSR; False is #GP. Known MSRs take the value and keep theirs."""
        if msr in _APIC_MSRS:
            return self.apics[vcpu].write_msr(msr, value)
        return msr in _MSRS

    def _reset_write(self, port: int, size: int, value: int) -> None:
        if value & _RESET and self.on_reset is not None:
            self.on_reset()

    def _switch_off(self) -> None:
        if self.on_power_off is not None:
            self.on_power_off()

    # Interrupts

    def pending_vector(self, vcpu: int) -> int | None:
        """The vector that this VCPU would take now."""
        apic = self.apics[vcpu]
        vector = apic.pending() if apic.irr else None
        if vector is None and apic.takes_extint:
            return self.pic.pending()
        return vector

    def acknowledge(self, vcpu: int) -> int:
        """The VCPU took its pending vector."""
        vector = self.apics[vcpu].acknowledge()
        return self.pic.acknowledge() if vector is None else vector

    def _send_ipi(self, sender: LocalApic, low: int, destination: int) -> None:
        delivery, vector, _, _ = decode_icr(low)
        targets = route(self.apics, sender, low, destination)
        if delivery == Delivery.LOWEST:
            targets = targets[:1]
        for apic in targets:
            if delivery in (Delivery.FIXED, Delivery.LOWEST):
                apic.request(vector)
            elif delivery == Delivery.INIT and low >> 14 & 1 and self.on_init is not None:
                self.on_init(apic.apic_id)
            elif delivery == Delivery.STARTUP and self.on_sipi is not None:
                self.on_sipi(apic.apic_id)

    def _send_msi(self, address: int, data: int) -> None:
        """A message-signalled interrupt (APM volume 2, 16.13): destination in address bits 19:12."""
        if address & 0xFFF00000 != APIC_BASE:
            return
        destination, logical = address >> 12 & 0xFF, bool(address >> 2 & 1)
        for apic in self.apics:
            if apic.apic_id == destination if not logical else apic.matches(destination, logical=True):
                apic.request(data & 0xFF)

    # Time

    def next_deadline_ns(self, vcpu: int) -> int | None:
        """When the next timer that concerns a VCPU fires; the PIT is VCPU 0's."""
        deadline = self.apics[vcpu].next_deadline_ns()
        if vcpu == 0:
            other = self.pit.next_deadline_ns()
            if other is not None and (deadline is None or other < deadline):
                return other
        return deadline

    def tick(self, now_ns: int) -> None:
        """Fire what is due."""
        self.pit.expire(now_ns)
        for apic in self.apics:
            apic.expire(now_ns)

    # Snapshots

    def state(self) -> dict[str, Any]:
        """Everything that a snapshot needs; plain values."""
        return {
            "now": self._now(),
            "pic": self.pic.state(),
            "pit": self.pit.state(),
            "rtc": self.rtc.state(),
            "power": self.power.state(),
            "serial": self.serial.state(),
            "apics": [apic.state() for apic in self.apics],
            "pci": self.pci.state(),
            "console": self.console.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """From a snapshot."""
        self.serial.load(state["serial"])
        self.pic.load(state["pic"])
        self.pit.load(state["pit"], self._now() - state["now"])
        self.rtc.load(state["rtc"])
        self.power.load(state["power"])
        for apic, saved in zip(self.apics, state["apics"], strict=True):
            apic.load(saved)
        self.pci.load(state["pci"])
        self.console.load(state["console"])
