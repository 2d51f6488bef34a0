# SPDX-License-Identifier: GPL-2.0-or-later
"""Decode the one store that the hardware refused: where it goes, what it writes, and the registers after it.

Only forms that Linux patches its text with are known (__text_poke() copies with memcpy()). All that is read here is the
kernel's to change while it is read: what comes out is a claim, and the decision is about the claim, which is carried
out by the service itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import iced_x86
from iced_x86 import Code, Mnemonic, OpKind, Register

from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.registers import Rflags
from veil.formats.service_events import RefusedAccess, Registers
from veil.services.context import Asking, MonitorClient, MonitorRefused
from veil.services.kci.errors import KciError

__all__ = ["MAX_STORE", "Store", "StoreUnknown", "read_store"]

#: No instruction is longer.
_MAX_INSTRUCTION = 15
#: The longest store that is looked at: longer ones are no patch of a site.
MAX_STORE = 16

_RAX, _RCX, _RSI, _RDI = 0, 1, 6, 7
_MASK = (1 << 64) - 1
_STRING_STORES = {Code.MOVSB_M8_M8: 1, Code.MOVSW_M16_M16: 2, Code.MOVSD_M32_M32: 4, Code.MOVSQ_M64_M64: 8}
_REGISTER_NUMBERS = {
    register: (number, size)
    for size, names in (
        (8, "RAX RCX RDX RBX RSP RBP RSI RDI R8 R9 R10 R11 R12 R13 R14 R15"),
        (4, "EAX ECX EDX EBX ESP EBP ESI EDI R8D R9D R10D R11D R12D R13D R14D R15D"),
        (2, "AX CX DX BX SP BP SI DI R8W R9W R10W R11W R12W R13W R14W R15W"),
        (1, "AL CL DL BL SPL BPL SIL DIL R8L R9L R10L R11L R12L R13L R14L R15L"),
    )
    for number, register in enumerate(getattr(Register, name) for name in names.split())
}
_IMMEDIATES = {
    OpKind.IMMEDIATE8, OpKind.IMMEDIATE16, OpKind.IMMEDIATE32, OpKind.IMMEDIATE64, OpKind.IMMEDIATE8TO16,
    OpKind.IMMEDIATE8TO32, OpKind.IMMEDIATE8TO64, OpKind.IMMEDIATE32TO64,
}  # fmt: skip


class StoreUnknown(KciError):
    """An instruction that is not one of those that patch text."""


@dataclass(frozen=True)
class Store:
    """What the instruction is about to write, and how its VCPU stands afterwards."""

    address: int
    """Virtual, of the first byte."""
    data: bytes
    gprs: tuple[int, ...]
    rip: int


def read_store(monitor: MonitorClient, access: RefusedAccess) -> Asking[Store]:
    """The store at RIP. Raises StoreUnknown."""
    registers = access.registers
    code = yield from _read(monitor, access.vcpu, registers.rip, _MAX_INSTRUCTION)
    decoder = iced_x86.Decoder(64, code, ip=registers.rip)
    instruction = decoder.decode()
    if instruction.is_invalid or instruction.has_lock_prefix or instruction.segment_prefix != Register.NONE:
        raise StoreUnknown(f"{code[: instruction.len].hex(' ')} is no store that patches text")
    width = _STRING_STORES.get(instruction.code)
    if width is not None:
        return (yield from _string_store(monitor, access, instruction, width))
    if instruction.mnemonic != Mnemonic.MOV or instruction.op0_kind != OpKind.MEMORY:
        raise StoreUnknown(f"{instruction} is no store that patches text")
    size = iced_x86.MemorySizeExt.size(instruction.memory_size)
    value = _source(instruction, registers) & (1 << 8 * size) - 1
    return Store(
        _address(instruction, registers), value.to_bytes(size, "little"), registers.gprs, instruction.next_ip & _MASK
    )


def _read(monitor: MonitorClient, vcpu: int, address: int, length: int) -> Asking[bytes]:
    """As much as is mapped: an instruction may end with its page."""
    found = b""
    while len(found) < length:
        at = (address + len(found)) & _MASK
        part = min(length - len(found), PAGE_SIZE - at % PAGE_SIZE)
        try:
            found += yield from monitor.read_virtual(vcpu, at, part)
        except MonitorRefused:
            break
    if not found:
        raise StoreUnknown(f"nothing is mapped at {address:#x}")
    return found


def _string_store(
    monitor: MonitorClient, access: RefusedAccess, instruction: iced_x86.Instruction, width: int
) -> Asking[Store]:
    registers = access.registers
    if registers.rflags & Rflags.DF:
        raise StoreUnknown(f"{instruction} goes backwards")
    repeated = instruction.has_rep_prefix or instruction.has_repne_prefix
    gprs = list(registers.gprs)
    count = gprs[_RCX] if repeated else 1
    if not 0 < count * width <= MAX_STORE:
        raise StoreUnknown(f"{instruction} of {count * width} bytes is no store that patches text")
    data = yield from _read(monitor, access.vcpu, gprs[_RSI], count * width)
    if len(data) < count * width:
        raise StoreUnknown(f"{instruction} reads what is not mapped at {gprs[_RSI]:#x}")
    address = gprs[_RDI]
    for register in (_RSI, _RDI):
        gprs[register] = (gprs[register] + count * width) & _MASK
    if repeated:
        gprs[_RCX] = 0
    return Store(address, data, tuple(gprs), instruction.next_ip & _MASK)


def _source(instruction: iced_x86.Instruction, registers: Registers) -> int:
    if instruction.op1_kind in _IMMEDIATES:
        return int(instruction.immediate(1)) & _MASK
    if instruction.op1_kind == OpKind.REGISTER:
        return _register(instruction.op1_register, registers)
    raise StoreUnknown(f"{instruction} is no store that patches text")


def _register(register: int, registers: Registers) -> int:
    found = _REGISTER_NUMBERS.get(register)
    if found is None:
        raise StoreUnknown("a store with a register that no store of text has")
    number, size = found
    return registers.gprs[number] & (1 << 8 * size) - 1


def _address(instruction: iced_x86.Instruction, registers: Registers) -> int:
    if instruction.memory_base == Register.RIP:
        return int(instruction.memory_displacement) & _MASK
    address = int(instruction.memory_displacement)
    if instruction.memory_base != Register.NONE:
        address += _register(instruction.memory_base, registers)
    if instruction.memory_index != Register.NONE:
        address += _register(instruction.memory_index, registers) * instruction.memory_index_scale
    return address & _MASK
