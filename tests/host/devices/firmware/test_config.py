# SPDX-License-Identifier: GPL-2.0-or-later
"""fw_cfg, as QEMU's specification has a guest use it, and as a hostile one may."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.devices.fakes import Clock, Memory
from veil.formats.board import PCI_MEMORY
from veil.host.devices.bus import IoBus
from veil.host.devices.firmware.config import FirmwareConfig
from veil.host.devices.firmware.contents import BoardContents, BootItems, board_contents
from veil.host.devices.firmware.ports import PmTimer, attach_debug_port

_SELECT, _DATA, _HIGH, _LOW = 0x510, 0x511, 0x514, 0x518
_ERROR, _READ, _SKIP, _CHOOSE, _WRITE = 1, 2, 4, 8, 16
_REQUEST, _TARGET = 0x1000, 0x8000
_KERNEL = bytes(0x1F1) + b"\x02" + bytes(1024) + b"the kernel proper" * 100


class _Guest:
    def __init__(self, contents: BoardContents | None = None) -> None:
        self.memory, self.bus = Memory(), IoBus()
        boot = BootItems(_KERNEL, b"initrd", b"quiet\0")
        ram = [(0, 1 << 20)]
        self.device = FirmwareConfig(self.memory, contents or board_contents(1 << 20, ram, 2, boot))
        self.device.attach(self.bus)

    def item(self, number: int, length: int) -> bytes:
        self.bus.write(_SELECT, 2, number)
        return bytes(self.bus.read(_DATA, 1) for _ in range(length))

    def number(self, number: int, size: int = 4) -> int:
        return int.from_bytes(self.item(number, size), "little")

    def files(self) -> dict[str, tuple[int, int]]:
        (count,) = struct.unpack(">I", self.item(0x19, 4))
        entries = struct.iter_unpack(">IHH56s", self.item(0x19, 4 + 64 * count)[4:])
        return {name.rstrip(b"\0").decode(): (number, size) for size, number, _, name in entries}

    def dma(self, control: int, length: int = 0, target: int = _TARGET, at: int = _REQUEST) -> int:
        """The control field after the request."""
        with contextlib.suppress(Exception):
            self.memory.write(at, struct.pack(">IIQ", control, length, target))
        self.bus.write(_HIGH, 4, int.from_bytes((at >> 32).to_bytes(4, "big"), "little"))
        self.bus.write(_LOW, 4, int.from_bytes((at & 0xFFFFFFFF).to_bytes(4, "big"), "little"))
        (result,) = struct.unpack(">I", self.memory.bytes[_REQUEST : _REQUEST + 4])
        return int(result)


def test_items_by_ports() -> None:
    guest = _Guest()
    assert guest.item(0, 4) == b"QEMU"
    assert guest.number(1) == 3
    assert (guest.number(5, 2), guest.number(0xF, 2), guest.number(3, 8)) == (2, 2, 1 << 20)
    assert guest.item(0x15, 8) == b"quiet\0\0\0"
    assert guest.item(0x3000, 2) == b"\0\0"


def test_the_kernel_in_two_parts() -> None:
    guest = _Guest()
    setup, rest = guest.number(0x17), guest.number(0x08)
    assert setup == 3 * 512
    assert guest.item(0x18, setup) + guest.item(0x11, rest) == _KERNEL
    assert guest.item(0x12, guest.number(0x0B)) == b"initrd"


def test_the_memory_map() -> None:
    guest = _Guest()
    number, size = guest.files()["etc/e820"]
    assert struct.unpack("<QQI", guest.item(number, size)) == (0, 1 << 20, 1)


def test_dma() -> None:
    guest = _Guest()
    assert guest.bus.read(_HIGH, 4) == int.from_bytes(b"QEMU", "little")
    assert guest.bus.read(_LOW, 4) == int.from_bytes(b" CFG", "little")
    size = guest.number(0x08)
    assert guest.dma(0x11 << 16 | _CHOOSE | _READ, 17) == 0
    assert guest.memory.read(_TARGET, 17) == _KERNEL[3 * 512 :][:17]
    assert guest.dma(_SKIP, size - 18) == 0
    # The last byte, and zeros behind it.
    guest.memory.write(_TARGET, b"\xff" * 4)
    assert guest.dma(_READ, 4) == 0
    assert guest.memory.read(_TARGET, 4) == _KERNEL[-1:] + bytes(3)


def test_nothing_can_be_written() -> None:
    guest = _Guest()
    assert guest.dma(0x15 << 16 | _CHOOSE | _WRITE, 6) == _ERROR
    assert guest.item(0x15, 6) == b"quiet\0"


def test_a_target_that_is_not_the_hosts_is_an_error() -> None:
    guest = _Guest()
    guest.memory.private = {_TARGET // 4096}
    assert guest.dma(0x11 << 16 | _CHOOSE | _READ, 4) == _ERROR
    assert guest.memory.bytes[_TARGET : _TARGET + 4] == bytes(4)
    assert guest.dma(0x11 << 16 | _CHOOSE | _READ, 0xFFFFFFFF, 1 << 63) == _ERROR


def test_a_request_that_is_not_the_hosts_is_lost() -> None:
    guest = _Guest()
    guest.memory.bytes[_REQUEST : _REQUEST + 16] = struct.pack(">IIQ", _READ, 4, _TARGET)
    guest.memory.private = {_REQUEST // 4096}
    assert guest.dma(_READ, 4) == _READ
    assert guest.dma(_READ, 4, at=1 << 60) == _READ


@given(
    st.lists(
        st.tuples(
            st.sampled_from([_SELECT, _DATA, _HIGH, _LOW]), st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF)
        )
    )
)
def test_any_writes(writes: list[tuple[int, int, int]]) -> None:  # fmt: skip
    guest = _Guest()
    for port, size, value in writes:
        guest.bus.write(port, size, value & (1 << 8 * size) - 1)
        guest.bus.read(port, size)
    assert guest.item(0, 4) == b"QEMU"


def test_state() -> None:
    guest, other = _Guest(), _Guest()
    guest.item(0x12, 2)
    other.device.load(guest.device.dump())
    assert bytes(other.bus.read(_DATA, 1) for _ in range(4)) == b"itrd"


def test_long_names_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="at most 55"):
        _Guest(BoardContents({}, {"x" * 56: b""}, PCI_MEMORY))


def test_the_timer_counts_on_after_a_snapshot() -> None:
    clock, bus = Clock(), IoBus()
    timer = PmTimer(clock.now_ns)
    timer.attach(bus)
    clock.advance(1_000_000_000)
    assert bus.read(0x608, 4) == 3_579_545
    later, other = Clock(), IoBus()
    later.advance(77_000_000_000)
    restored = PmTimer(later.now_ns)
    restored.attach(other)
    restored.load(timer.dump())
    assert other.read(0x608, 4) == 3_579_545
    later.advance(10_000_000_000)
    assert other.read(0x608, 4) == 11 * 3_579_545 & 0xFFFFFF


def test_what_a_debug_build_says() -> None:
    said = bytearray()
    bus = IoBus()
    attach_debug_port(bus, said.extend)
    for value in b"SEC":
        bus.write(0x402, 1, value)
    assert (bytes(said), bus.read(0x402, 1)) == (b"SEC", 0xE9)
