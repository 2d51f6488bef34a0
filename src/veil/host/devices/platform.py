# SPDX-License-Identifier: GPL-2.0-or-later
"""The board: every device behind ports, device memory and MSRs, and the interrupt controllers of all VCPUs.

Wiring: 8254 channel 0 on IRQ 0, COM1 on IRQ 4, virtio-console by MSI-X (or IRQ 10), disks and network card by MSI-X (or
IRQ 11, which they share), the clock on IRQ 8; the 8259s reach VCPU 0 through LINT0 of its local APIC. With Q35's
chipset each IRQ goes to the I/O APIC as well.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from veil.formats.board import (
    CONSOLE_IRQ,
    CONSOLE_SLOT,
    DISK_IRQ,
    DISK_SLOT,
    IO_APIC,
    MAX_DISKS,
    NETWORK_SLOT,
    PCI_MEMORY,
    TIMER_IRQ,
    TIMER_PIN,
)
from veil.formats.tsc import TSC_KHZ
from veil.formats.user_network import MAC
from veil.host.devices._dma import ConfinedMemory
from veil.host.devices.apic.apic import APIC_PAGE_SIZE, LocalApic
from veil.host.devices.apic.interrupts import InterruptRouter
from veil.host.devices.apic.io_apic import IoApic
from veil.host.devices.bus import IoBus, MmioBus
from veil.host.devices.channel import ChannelDevice
from veil.host.devices.firmware.config import FirmwareConfig
from veil.host.devices.firmware.ports import PmTimer, attach_debug_port
from veil.host.devices.legacy.pic import Pic, SharedLine
from veil.host.devices.legacy.pit import Pit
from veil.host.devices.legacy.power import PowerControl
from veil.host.devices.legacy.rtc import RTC_IRQ, Rtc
from veil.host.devices.legacy.serial8250 import COM1_IRQ, Serial8250
from veil.host.devices.msrs import MsrTable
from veil.host.devices.pci.bus import PciBus
from veil.host.devices.pci.chipset import Chipset, plug_chipset
from veil.host.devices.virtio.block import VirtioBlock
from veil.host.devices.virtio.console import VirtioConsole
from veil.host.devices.virtio.net import VirtioNet
from veil.host.errors import HostError
from veil.host.saved_state import Dumpable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from veil.host.devices.firmware.contents import BoardContents
    from veil.host.devices.storage.backend import Backend
    from veil.host.devices.virtio.net import Cable
    from veil.host.devices.virtio.virtqueue import DmaMemory

__all__ = ["AGENT_PORT", "MAX_DISKS", "Platform"]

#: The name of the binary channel (/dev/virtio-ports/veil.agent in the guest).
AGENT_PORT = "veil.agent"

_DELAY_PORT = 0x80
_CONSOLE_IO = 0xC000
_CONSOLE_MMIO = 0xC0000000

_DISK_IO, _DISK_IO_STEP = 0xC100, 0x80
_DISK_MMIO, _DISK_MMIO_STEP = 0xC0001000, 0x1000

_NETWORK_IO = _DISK_IO + MAX_DISKS * _DISK_IO_STEP
_NETWORK_MMIO = _DISK_MMIO + MAX_DISKS * _DISK_MMIO_STEP

_MSR_APIC_BASE = 0x1B
_MSR_TSC_DEADLINE = 0x6E0
_MSR_X2APIC = 0x800
_X2APIC_MSRS = 0x100


class _Clock:
    """The clocks that a platform was given."""

    def __init__(self, now_ns: Callable[[], int], tsc: Callable[[], int], tsc_khz: int) -> None:
        self.now_ns = now_ns
        self.tsc = tsc
        self.tsc_khz = tsc_khz


class Platform:
    """All devices of a guest. Everything runs in the hypervisor's thread.

    `now_ns` is the host's monotonic clock, `tsc` the guest's time stamp counter, which counts at `tsc_khz`. Without
    one `now_ns` is taken, which counts at the default rate. `console` gets what the serial port and hvc0 print.
    `cable`: there is a network card, with this in it. `firmware`: a board for stock firmware, and what it tells it.
    """

    def __init__(
        self,
        memory: DmaMemory,
        *,
        vcpus: int = 1,
        apic_ids: Sequence[int] | None = None,
        now_ns: Callable[[], int] = time.monotonic_ns,
        tsc: Callable[[], int] | None = None,
        tsc_khz: int = TSC_KHZ,
        wall_ns: Callable[[], int] = time.time_ns,
        console: Callable[[bytes], None] | None = None,
        x2apic: bool = False,
        chipset: Chipset = Chipset.GENERIC,
        disks: Sequence[Backend] = (),
        cable: Cable | None = None,
        firmware: BoardContents | None = None,
    ) -> None:
        ids = list(range(vcpus)) if apic_ids is None else list(apic_ids)
        if len(ids) != vcpus or len(set(ids)) != vcpus:
            raise HostError(f"{vcpus} VCPUs need as many different APIC IDs, not {ids}")
        self.io = IoBus()
        self.mmio = MmioBus()
        self.interrupts = InterruptRouter()
        clock = _Clock(now_ns, now_ns if tsc is None else tsc, tsc_khz)
        self.apics = [
            LocalApic(apic_id, clock, self.interrupts.send_ipi, self.interrupts.end, bsp=index == 0, x2apic=x2apic)
            for index, apic_id in enumerate(ids)
        ]
        self.interrupts.apics = self.apics
        self.pic = Pic()
        self.io_apic = self._plug_io_apic() if chipset is Chipset.Q35 else None
        self.pit = Pit(self._line(TIMER_IRQ), now_ns)
        self.rtc = Rtc(self._line(RTC_IRQ), now_ns, wall_ns)
        self.serial = Serial8250(self._line(COM1_IRQ))
        self.power = PowerControl()
        #: users' connections to VeilMon
        self.channel = ChannelDevice(memory)
        self.pci = PciBus(self.io, self.mmio, PCI_MEMORY if firmware is None else firmware.pci_memory)
        plug_chipset(self.pci, chipset)
        self._dma = ConfinedMemory(memory)
        self.console = VirtioConsole(
            self._dma,
            self.interrupts.send_message,
            self._line(CONSOLE_IRQ),
            [None, AGENT_PORT],
            io_address=_CONSOLE_IO,
            mmio_address=_CONSOLE_MMIO,
            irq=CONSOLE_IRQ,
        )
        self.pci.add(CONSOLE_SLOT, self.console)
        shared_line = SharedLine(self._line(DISK_IRQ))
        self.disks = self._plug_disks(disks, shared_line)
        self.network = self._plug_network(cable, shared_line) if cable is not None else None
        #: the binary channel to the guest's agent
        self.agent = self.console.ports[1]
        self.msrs = MsrTable(clock.tsc)
        for device in (self.pic, self.pit, self.rtc, self.serial, self.power, self.channel):
            device.attach(self.io)
        # Linux writes to the diagnostics port to pass time (io_delay).
        self.io.add_register(_DELAY_PORT, None, lambda value: None)
        self._firmware: dict[str, Dumpable] = {}
        if firmware is not None:
            self._plug_firmware(firmware, now_ns, console)
        if console is not None:
            self.serial.output = console
            self.console.ports[0].on_data = console
        self._boot_apic = self.apics[0]
        # The hot paths, without a call in between.
        self.io_read = self.io.read
        self.io_write = self.io.write

    def _plug_io_apic(self) -> IoApic:
        device = IoApic(self.interrupts)
        self.mmio.add_window(device.window(IO_APIC))
        self.interrupts.on_end = device.ended
        return device

    def _line(self, irq: int) -> Callable[[bool], None]:
        """An IRQ's wire: to the 8259s, and to the I/O APIC if there is one. The guest masks it at one of them."""
        pic_line = self.pic.line(irq)
        if self.io_apic is None:
            return pic_line
        pin_line = self.io_apic.line(TIMER_PIN if irq == TIMER_IRQ else irq)

        def drive(level: bool) -> None:
            pic_line(level)
            pin_line(level)

        return drive

    def _plug_disks(self, backends: Sequence[Backend], line: SharedLine) -> list[VirtioBlock]:
        if len(backends) > MAX_DISKS:
            raise HostError(f"{len(backends)} disks are too many: the board has room for {MAX_DISKS}")
        disks = [
            VirtioBlock(
                self._dma,
                self.interrupts.send_message,
                line.input(),
                backend,
                serial=b"veil-%d" % number,
                io_address=_DISK_IO + number * _DISK_IO_STEP,
                mmio_address=_DISK_MMIO + number * _DISK_MMIO_STEP,
                irq=DISK_IRQ,
            )
            for number, backend in enumerate(backends)
        ]
        for number, disk in enumerate(disks):
            self.pci.add(DISK_SLOT + number, disk)
        return disks

    def _plug_network(self, cable: Cable, line: SharedLine) -> VirtioNet:
        card = VirtioNet(
            self._dma,
            self.interrupts.send_message,
            line.input(),
            cable,
            mac=MAC,
            io_address=_NETWORK_IO,
            mmio_address=_NETWORK_MMIO,
            irq=DISK_IRQ,
        )
        self.pci.add(NETWORK_SLOT, card)
        return card

    def _plug_firmware(
        self, contents: BoardContents, now_ns: Callable[[], int], console: Callable[[bytes], None] | None
    ) -> None:
        """What firmware finds its way by."""
        config, timer = FirmwareConfig(self._dma, contents), PmTimer(now_ns)
        config.attach(self.io)
        timer.attach(self.io)
        attach_debug_port(self.io, console or (lambda data: None))
        self._firmware = {"firmware configuration": config, "power management timer": timer}

    # What is told to the hypervisor

    @property
    def on_init(self) -> Callable[[int], None] | None:
        """An INIT for a VCPU."""
        return self.interrupts.on_init

    @on_init.setter
    def on_init(self, callback: Callable[[int], None] | None) -> None:
        self.interrupts.on_init = callback

    @property
    def on_sipi(self) -> Callable[[int], None] | None:
        """A start-up IPI for a VCPU."""
        return self.interrupts.on_sipi

    @on_sipi.setter
    def on_sipi(self, callback: Callable[[int], None] | None) -> None:
        self.interrupts.on_sipi = callback

    @property
    def on_nmi(self) -> Callable[[int], None] | None:
        """An NMI for a VCPU."""
        return self.interrupts.on_nmi

    @on_nmi.setter
    def on_nmi(self, callback: Callable[[int], None] | None) -> None:
        self.interrupts.on_nmi = callback

    @property
    def on_reset(self) -> Callable[[], None] | None:
        """The guest resets its machine."""
        return self.power.on_reset

    @on_reset.setter
    def on_reset(self, callback: Callable[[], None] | None) -> None:
        self.power.on_reset = callback

    @property
    def on_power_off(self) -> Callable[[], None] | None:
        """The guest switches its machine off."""
        return self.power.on_power_off

    @on_power_off.setter
    def on_power_off(self, callback: Callable[[], None] | None) -> None:
        self.power.on_power_off = callback

    # Device memory and MSRs

    def confine(self, allows: Callable[[int, int], bool]) -> None:
        """Devices that the kernel drives reach only memory of which `allows(gpa, length)` says so."""
        self._dma.allows = allows

    def mmio_read(self, gpa: int, size: int, vcpu: int = 0) -> int:
        """A load by a VCPU: each sees its own APIC, where it has put it."""
        offset = gpa - self.apics[vcpu].page
        if offset >= 0 and offset + size <= APIC_PAGE_SIZE:
            return self.apics[vcpu].read_page(offset, size)
        return self.mmio.read(gpa, size)

    def mmio_write(self, gpa: int, size: int, value: int, vcpu: int = 0) -> None:
        """A store by a VCPU."""
        offset = gpa - self.apics[vcpu].page
        if offset >= 0 and offset + size <= APIC_PAGE_SIZE:
            self.apics[vcpu].write_page(offset, size, value)
        else:
            self.mmio.write(gpa, size, value)

    def msr_read(self, vcpu: int, msr: int) -> int | None:
        """RDMSR; None is #GP."""
        if _MSR_X2APIC <= msr < _MSR_X2APIC + _X2APIC_MSRS:
            return self.apics[vcpu].read_msr(msr - _MSR_X2APIC)
        if msr == _MSR_TSC_DEADLINE:
            return self.apics[vcpu].timer.deadline_tsc
        if msr == _MSR_APIC_BASE:
            return self.apics[vcpu].base
        return self.msrs.read(msr)

    def msr_write(self, vcpu: int, msr: int, value: int) -> bool:
        """WRMSR; False is #GP."""
        if msr == _MSR_TSC_DEADLINE:
            self.apics[vcpu].timer.set_deadline(value)
            return True
        if _MSR_X2APIC <= msr < _MSR_X2APIC + _X2APIC_MSRS:
            return self.apics[vcpu].write_msr(msr - _MSR_X2APIC, value)
        if msr == _MSR_APIC_BASE:
            return self.apics[vcpu].write_base(value)
        return self.msrs.write(msr, value)

    # Interrupts

    def send_ipi(self, vcpu: int, icr: int) -> None:
        """As a write of x2APIC's interrupt command register, in whichever mode the APIC is."""
        self.interrupts.send_ipi(self.apics[vcpu], icr & 0xFFFFFFFF, icr >> 32)

    def apic_enabled(self, vcpu: int) -> bool:
        """Is the VCPU's APIC on at all? CPUID says so, too."""
        return self.apics[vcpu].enabled

    def pending_vector(self, vcpu: int) -> int | None:
        """The vector that this VCPU would get now, if its RFLAGS.IF and CR8 let it."""
        if vcpu == 0:
            vector = self.pic.vector
            # An external interrupt passes the APIC's priorities by.
            if vector is not None and self._boot_apic.takes_extint:
                return vector
            return self._boot_apic.pending
        return self.apics[vcpu].pending

    def passes_priorities(self, vcpu: int) -> bool:
        """Does CR8 not matter to the vector that is pending? It is the 8259's."""
        return vcpu == 0 and self.pic.vector is not None and self._boot_apic.takes_extint

    def connect_cr8(self, read: Callable[[int], int], write: Callable[[int, int], None]) -> None:
        """Of a VCPU: it is the upper half of the APIC's TPR."""
        for index, apic in enumerate(self.apics):
            apic.read_cr8, apic.write_cr8 = partial(read, index), partial(write, index)

    def acknowledge(self, vcpu: int) -> int:
        """The VCPU took its pending vector; nothing may have happened here since it was asked for."""
        if self.passes_priorities(vcpu):
            return self.pic.acknowledge()
        return self.apics[vcpu].acknowledge()

    # Time

    def next_deadline_ns(self, vcpu: int) -> int | None:
        """When `tick` should next be called for a VCPU's sake; the timers of the board count for VCPU 0."""
        deadline = self.apics[vcpu].timer.deadline_ns
        if vcpu == 0:
            other = self.pit.deadline_ns
            if other is not None and (deadline is None or other < deadline):
                deadline = other
            other = self.rtc.deadline_ns
            if other is not None and (deadline is None or other < deadline):
                deadline = other
        return deadline

    def tick(self, now_ns: int) -> None:
        """Fire what is due."""
        for apic in self.apics:
            apic.tick(now_ns)
        self.pit.tick(now_ns)
        self.rtc.tick(now_ns)

    # Snapshots

    def dump(self) -> dict[str, Any]:
        """Everything that a snapshot needs, of plain values."""
        return {name: device.dump() for name, device in self._devices().items()}

    def load(self, state: dict[str, Any]) -> None:
        """From a snapshot; the machine's TSC must be restored before."""
        for name, device in self._devices().items():
            try:
                device.load(state[name])
            except (LookupError, TypeError, ValueError, OverflowError, AttributeError, AssertionError) as error:
                raise HostError(f"snapshot: the state of device {name} is damaged ({error!r})") from error

    def _devices(self) -> dict[str, Dumpable]:
        devices: dict[str, Dumpable] = {
            "pci": self.pci,
            "console": self.console,
            **{f"disk {number}": disk for number, disk in enumerate(self.disks)},
            "serial": self.serial,
            "pit": self.pit,
            "rtc": self.rtc,
            "power": self.power,
            "channel": self.channel,
            # After all that drive its inputs.
            "pic": self.pic,
        }
        if self.network is not None:
            devices["network"] = self.network
        if self.io_apic is not None:
            devices["I/O APIC"] = self.io_apic
        return devices | self._firmware | {f"apic {index}": apic for index, apic in enumerate(self.apics)}
