# SPDX-License-Identifier: GPL-2.0-or-later
"""The board as the hypervisor sees it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.host.devices.fakes import Clock, Memory
from veil.host import HostError
from veil.host.devices import Chipset, Platform


def make(vcpus: int = 2, chipset: Chipset = Chipset.Q35) -> tuple[Platform, Clock, list[bytes]]:
    clock = Clock()
    console: list[bytes] = []
    platform = Platform(
        Memory(),
        vcpus=vcpus,
        now_ns=clock.now_ns,
        tsc=clock.tsc,
        tsc_khz=clock.tsc_khz,
        wall_ns=clock.wall_ns,
        console=console.append,
        chipset=chipset,
    )
    return platform, clock, console


def test_nobody_there() -> None:
    platform, _, _ = make()
    assert [platform.io_read(0x999, size) for size in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFFFFFF]
    assert platform.mmio_read(0xF0000000, 8) == (1 << 64) - 1
    platform.io_write(0x999, 4, 1)
    platform.mmio_write(0xF0000000, 8, 1)


def test_wide_accesses_to_byte_registers() -> None:
    platform, _, console = make()
    platform.io_write(0x3F8, 2, 0x0041)
    assert console == [b"A"]
    assert platform.io_read(0x3FD, 2) == 0xB060
    assert platform.io_read(0xFFFF, 4) == 0xFFFFFFFF


def test_msrs_that_linux_asks_for() -> None:
    platform, clock, _ = make()
    for msr in (0x8B, 0xC0010000, 0xC0010003, 0xC0010007, 0xC001001F, 0xC0011029):
        assert platform.msr_read(0, msr) is not None
        assert platform.msr_write(0, msr, 0xFFFF)
    syscfg, hwcr = platform.msr_read(0, 0xC0010010), platform.msr_read(0, 0xC0010015)
    assert syscfg is not None
    assert syscfg >> 23 & 1, "memory encryption is on, or Linux hides its flags"
    assert hwcr is not None
    assert hwcr & 1
    assert platform.msr_read(0, 0x10) == clock.tsc()
    assert platform.msr_read(0, 0x12345) is None
    assert not platform.msr_write(0, 0x12345, 0)
    assert not platform.msr_write(0, 0x10, 0)


def test_apic_msrs() -> None:
    platform, _, _ = make()
    assert platform.msr_read(0, 0x1B) == 0xFEE00900
    assert platform.msr_read(1, 0x1B) == 0xFEE00800
    assert platform.msr_read(1, 0x802) is None
    assert platform.msr_write(1, 0x1B, 0xFEE00C00)
    assert platform.msr_read(1, 0x802) == 1
    assert not platform.msr_write(1, 0x1B, 1)
    assert platform.apic_enabled(1)
    assert platform.msr_write(1, 0x1B, 0xFEE00000)
    assert (platform.apic_enabled(0), platform.apic_enabled(1)) == (True, False)


def test_deadlines() -> None:
    platform, clock, _ = make()
    assert platform.next_deadline_ns(0) is None
    for vcpu, after in ((0, 3000), (1, 1000)):
        platform.mmio_write(0xFEE000F0, 4, 0x1FF, vcpu)
        platform.mmio_write(0xFEE00320, 4, 2 << 17 | 0xEC, vcpu)
        assert platform.msr_write(vcpu, 0x6E0, clock.tsc() + 2 * after)
    assert platform.next_deadline_ns(0) == clock.time + 3000
    assert platform.next_deadline_ns(1) == clock.time + 1000
    clock.advance(1000)
    platform.tick(clock.time)
    assert [platform.pending_vector(vcpu) for vcpu in (0, 1)] == [None, 0xEC]
    assert platform.msr_read(1, 0x6E0) == 0


def test_power() -> None:
    platform, _, _ = make()
    log: list[str] = []
    platform.io_write(0xCF9, 1, 0x06)
    platform.on_reset = lambda: log.append("reset")
    platform.on_power_off = lambda: log.append("off")
    # acpi_hw_write_pm1_control: first the type, then with SLP_EN.
    assert platform.io_read(0x604, 2) & 1, "ACPI mode"
    platform.io_write(0x604, 2, 5 << 10 | 1)
    assert log == []
    platform.io_write(0x604, 2, 5 << 10 | 1 | 1 << 13)
    assert log == ["off"]
    platform.io_write(0xCF9, 1, 0x02)
    assert platform.io_read(0xCF9, 1) == 0x02
    platform.io_write(0xCF9, 1, 0x06)
    platform.io_write(0x64, 1, 0xFE)
    assert log == ["off", "reset", "reset"]


def test_apic_ids() -> None:
    with pytest.raises(HostError, match="as many different"):
        Platform(Memory(), vcpus=2, apic_ids=[1, 1])
    platform = Platform(Memory(), vcpus=2, apic_ids=[4, 6])
    assert platform.mmio_read(0xFEE00020, 4, 1) >> 24 == 6


def plain(value: Any) -> Any:
    """Through JSON, with bytes as a list of their own."""
    if isinstance(value, dict):
        assert all(type(key) is str for key in value)
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value
    assert value is None or type(value) in (int, bool, str), repr(value)
    if type(value) is int:
        assert -(1 << 63) <= value < 1 << 64, "msgpack takes no more"
    return json.loads(json.dumps(value))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["io", "mmio", "msr", "ack", "time", "feed"]),
            st.one_of(
                st.sampled_from([0x20, 0x21, 0x40, 0x43, 0x61, 0x70, 0x71, 0xA0, 0xCF8, 0xCFC, 0x3F8, 0x3F9, 0x3FC]),
                st.integers(0, 0xFFFF),
            ),
            st.integers(0, (1 << 64) - 1),
            st.integers(0, 1),
        ),
        max_size=60,
    )
)
@settings(max_examples=examples(150), deadline=None)
def test_any_guest_leaves_a_board_that_can_be_saved(steps: list[tuple[str, int, int, int]]) -> None:
    platform, clock, _ = make()
    for kind, place, value, vcpu in steps:
        size = 1 << value % 3
        if kind == "io":
            platform.io_write(place, size, value & (1 << 8 * size) - 1)
            assert 0 <= platform.io_read(place, size) < 1 << 8 * size
        elif kind == "mmio":
            for base in (0xC0000000, 0xFEC00000, 0xFEE00000):
                gpa = base + (place & 0xFFC)
                platform.mmio_write(gpa, 4, value & 0xFFFFFFFF, vcpu)
                assert 0 <= platform.mmio_read(gpa, 4, vcpu) < 1 << 32
        elif kind == "msr":
            for msr in (0x800 | place & 0xFF, 0x1B, 0x6E0, place):
                platform.msr_write(vcpu, msr, value)
                read = platform.msr_read(vcpu, msr)
                assert read is None or 0 <= read < 1 << 64
        elif kind == "ack":
            expected = platform.pending_vector(vcpu)
            vector = platform.acknowledge(vcpu)
            assert expected in (None, vector)
        elif kind == "time":
            clock.advance(value & 0x3FFFFFFF)
            platform.tick(clock.time)
        else:
            platform.serial.feed(bytes(value & 31))
        for number in range(2):
            deadline = platform.next_deadline_ns(number)
            assert deadline is None or deadline > clock.time - 1 or kind != "time"
    state = platform.dump()
    copy, later, _ = make()
    later.time, later.wall = clock.time, clock.wall
    copy.load(plain(state))
    assert copy.dump() == state
    assert [copy.pending_vector(v) for v in (0, 1)] == [platform.pending_vector(v) for v in (0, 1)]


def refusal(state: dict[str, Any]) -> str:
    """What loading it says; nothing but HostError may come out."""
    try:
        make()[0].load(state)
    except HostError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("device", ["pci", "console", "serial", "pit", "rtc", "power", "pic", "I/O APIC", "apic 0"])
def test_a_damaged_snapshot_is_one_clear_line(device: str) -> None:
    platform, _, _ = make()
    state = platform.dump()
    damaged: list[dict[str, Any]] = [{key: value for key, value in state.items() if key != device}]
    for key in state[device]:
        for wrong in (None, "x", [1], 1.5, -1):
            damaged.append(state | {device: {**state[device], key: wrong}})
    words = [message for candidate in damaged if (message := refusal(candidate))]
    # Some of the wrong values are possible ones, but never all for one part.
    assert len(words) > len(state[device])
    assert all(f"device {device} is damaged" in message for message in words)
