# SPDX-License-Identifier: GPL-2.0-or-later
"""What a refused store would write, from the instruction and the registers alone."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.machine_code import assemble
from veil.formats.nested_faults import NestedFault
from veil.formats.page_owners import Owner
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.service_domain import ReadVirtual
from veil.formats.service_events import RefusedAccess, Registers
from veil.formats.status import Status
from veil.services.context import MonitorClient
from veil.services.kci.stores import MAX_STORE, Store, StoreUnknown, read_store

RIP, SOURCE, TARGET = 0xFFFFFFFF81234FF8, 0xFFFF888000000FFE, 0x7F0000000123
GPRS = {"rax": 0, "rcx": 1, "rdx": 2, "rbx": 3, "rsi": 6, "rdi": 7, "r8": 8, "r9": 9}


class _Memory:
    """The kernel's virtual memory, by pages."""

    def __init__(self, **pieces: bytes) -> None:
        self._bytes: dict[int, int] = {}

    def put(self, address: int, data: bytes) -> None:
        self._bytes.update({address + at: byte for at, byte in enumerate(data)})

    def answer(self, read: ReadVirtual) -> tuple[Status, bytes]:
        if any(read.address + at not in self._bytes for at in range(read.length)):
            return Status.BAD_REQUEST, b"not mapped"
        return Status.OK, bytes(self._bytes[read.address + at] for at in range(read.length))


def _decode(code: bytes, memory: _Memory | None = None, rflags: int = 2, mapped: int = 32, **registers: int) -> Store:
    memory = memory or _Memory()
    memory.put(RIP, code.ljust(32, b"\x90")[:mapped])
    gprs = [0x1111 * number for number in range(16)]
    for name, value in registers.items():
        gprs[GPRS[name]] = value
    saved = Registers(tuple(gprs), RIP, rflags, 0, 0, 0, 0, 0, 0, 0, 0)
    access = RefusedAccess(0, 0, 0, NestedFault.WRITE | NestedFault.FINAL, Owner.KERNEL_CODE, saved)
    client: Any = MonitorClient(None)  # type: ignore[arg-type]
    steps: Generator[Any, Any, Store] = read_store(client, access)
    try:
        ask = next(steps)
        while True:
            ask = steps.send(memory.answer(ReadVirtual.parse(ask.body)))
    except StopIteration as stop:
        found: Store = stop.value
        return found


@pytest.mark.parametrize(
    ("text", "address", "data"),
    [
        ("mov byte ptr [rdi], al", TARGET, b"\x88"),
        ("mov word ptr [rdi + 2], ax", TARGET + 2, b"\x88\x77"),
        ("mov dword ptr [rdi + rdx * 4], r8d", TARGET + 12, b"\x04\x03\x02\x01"),
        ("mov qword ptr [rdi - 8], r8", TARGET - 8, bytes(range(4, 0, -1)) + b"\xff" * 4),
        ("mov byte ptr [rdi], 0xcc", TARGET, b"\xcc"),
        ("mov dword ptr [rip + 0x10], 0x12345678", RIP + 10 + 0x10, b"\x78\x56\x34\x12"),
        ("mov qword ptr [rdi], -2", TARGET, b"\xfe" + b"\xff" * 7),
    ],
)
def test_moves(text: str, address: int, data: bytes) -> None:
    code = assemble(text, RIP)
    store = _decode(code, rax=0x7788, rdi=TARGET, rdx=3, r8=0xFFFFFFFF01020304)
    assert (store.address, store.data, store.rip) == (address, data, RIP + len(code))


def test_string_stores() -> None:
    memory = _Memory()
    memory.put(SOURCE, b"text")
    store = _decode(assemble("rep movsb", RIP), memory, rcx=4, rsi=SOURCE, rdi=TARGET)
    assert (store.address, store.data, store.rip) == (TARGET, b"text", RIP + 2)
    assert [store.gprs[GPRS[name]] for name in ("rcx", "rsi", "rdi")] == [0, SOURCE + 4, TARGET + 4]
    store = _decode(assemble("movsw", RIP), memory, rcx=7, rsi=SOURCE, rdi=TARGET)
    assert (store.data, store.gprs[GPRS["rcx"]]) == (b"te", 7)


@pytest.mark.parametrize(
    "text",
    [
        "lock add [rdi], eax", "xchg [rdi], eax", "add [rdi], eax", "mov eax, [rdi]", "mov gs:[rdi], eax", "ud2",
        "movups [rdi], xmm0", "push rax", "stosb", "call [rdi]", "cmpxchg [rdi], ecx",
    ],
)  # fmt: skip
def test_other_instructions(text: str) -> None:
    with pytest.raises(StoreUnknown):
        _decode(assemble(text, RIP), rdi=TARGET)


def test_string_stores_that_are_no_patch() -> None:
    memory = _Memory()
    memory.put(SOURCE, bytes(64))
    for registers in ({"rcx": MAX_STORE + 1}, {"rcx": 0}, {"rcx": 1 << 63}, {"rcx": 4, "rflags": 1 << 10}):
        with pytest.raises(StoreUnknown):
            _decode(assemble("rep movsb", RIP), memory, rsi=SOURCE, rdi=TARGET, **registers)
    with pytest.raises(StoreUnknown, match="mapped"):
        _decode(assemble("rep movsb", RIP), memory, rcx=4, rsi=SOURCE + 62, rdi=TARGET)


def test_an_instruction_at_the_end_of_what_is_mapped() -> None:
    left = PAGE_SIZE - RIP % PAGE_SIZE
    assert left < 15
    assert _decode(assemble("mov [rdi], al", RIP), mapped=left, rdi=TARGET).address == TARGET
    with pytest.raises(StoreUnknown):
        _decode(assemble("mov qword ptr [rdi + 0x1000], 0x1234", RIP), mapped=left, rdi=TARGET)
    with pytest.raises(StoreUnknown, match="nothing is mapped"):
        _decode(b"", mapped=0)


@given(st.binary(min_size=1, max_size=15), st.integers(0, (1 << 64) - 1))
def test_any_bytes(code: bytes, value: int) -> None:
    try:
        store = _decode(code, rdi=value, rcx=value, rsi=value)
    except StoreUnknown:
        return
    assert 0 <= store.address < 1 << 64
    assert 0 < len(store.data) <= MAX_STORE
