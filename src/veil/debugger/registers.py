# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMSA's registers as gdb names, numbers and packs them ("GDB Remote Serial Protocol", G.5.6 "i386 Features")."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from veil.snp.layouts import Vmsa

__all__ = ["REGISTERS", "TARGET_XML", "Register", "pack_all", "unpack_all"]


class Register(NamedTuple):
    """`size` in bytes; `read` and `write` on a copy of a VMSA."""

    name: str
    size: int
    kind: str
    read: Callable[[Vmsa], int]
    write: Callable[[Vmsa, int], None]


def _plain(name: str, size: int = 8, kind: str = "int64", field: str | None = None) -> Register:
    where = field or name

    def read(vmsa: Vmsa) -> int:
        return int(getattr(vmsa, where))

    def write(vmsa: Vmsa, value: int) -> None:
        setattr(vmsa, where, value)

    return Register(name, size, kind, read, write)


def _segment(name: str, part: str = "selector", size: int = 4, as_name: str | None = None) -> Register:
    def read(vmsa: Vmsa) -> int:
        return int(getattr(getattr(vmsa, name), part))

    def write(vmsa: Vmsa, value: int) -> None:
        setattr(getattr(vmsa, name), part, value)

    return Register(as_name or name, size, "int32" if size == 4 else "int", read, write)


def _bytes(name: str, field: str, size: int, kind: str, place: Callable[[Vmsa], int]) -> Register:
    """`place`: of the first byte in the field."""

    def read(vmsa: Vmsa) -> int:
        first = place(vmsa)
        return int.from_bytes(bytes(getattr(vmsa, field)[first : first + size]), "little")

    def write(vmsa: Vmsa, value: int) -> None:
        first = place(vmsa)
        getattr(vmsa, field)[first : first + size] = value.to_bytes(size, "little")

    return Register(name, size, kind, read, write)


def _stack_register(number: int) -> Register:
    """ST(n): the VMSA has the eight in their own order, FSW says which is the top."""

    def place(vmsa: Vmsa) -> int:
        return 10 * ((int(vmsa.x87_fsw) >> 11) + number & 7)

    return _bytes(f"st{number}", "fpreg_x87", 10, "i387_ext", place)


def _xmm(number: int) -> Register:
    return _bytes(f"xmm{number}", "fpreg_xmm", 16, "vec128", lambda _: 16 * number)


_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16)))
_X87 = {
    "fctrl": "x87_fcw", "fstat": "x87_fsw", "ftag": "x87_ftw", "fiseg": "x87_cs", "fioff": "x87_rip",
    "foseg": "x87_ds", "fooff": "x87_dp", "fop": "x87_fop",
}  # fmt: skip
_POINTERS = {"rbp": "data_ptr", "rsp": "data_ptr"}

_CORE = (
    *(_plain(name, kind=_POINTERS.get(name, "int64")) for name in _GENERAL),
    _plain("rip", kind="code_ptr"),
    _plain("eflags", 4, "int32", "rflags"),
    *(_segment(name) for name in ("cs", "ss", "ds", "es", "fs", "gs")),
    *(_stack_register(number) for number in range(8)),
    *(_plain(name, 4, "int", field) for name, field in _X87.items()),
)
_SSE = (*(_xmm(number) for number in range(16)), _plain("mxcsr", 4, "int"))
_SEGMENTS = (_segment("fs", "base", 8, "fs_base"), _segment("gs", "base", 8, "gs_base"))
_SYSTEM = (
    _plain("k_gs_base", field="kernel_gs_base"),
    *(_plain(name) for name in ("cr0", "cr2", "cr3", "cr4", "efer", "dr6", "dr7", "star", "lstar", "sfmask")),
    _segment("gdtr", "base", 8, "gdt_base"),
    _segment("idtr", "base", 8, "idt_base"),
    _segment("tr", "base", 8, "tr_base"),
    _plain("cpl", 4, "int32"),
    _plain("sev_features"),
)

_FEATURES = {
    "org.gnu.gdb.i386.core": _CORE,
    "org.gnu.gdb.i386.sse": _SSE,
    "org.gnu.gdb.i386.segments": _SEGMENTS,
    "veil.snp.system": _SYSTEM,
}
#: what gdb must be told of the types that are not its own
_TYPES = {
    "org.gnu.gdb.i386.sse": """
<vector id="v4f" type="ieee_single" count="4"/><vector id="v2d" type="ieee_double" count="2"/>
<vector id="v16i8" type="int8" count="16"/><vector id="v8i16" type="int16" count="8"/>
<vector id="v4i32" type="int32" count="4"/><vector id="v2i64" type="int64" count="2"/>
<union id="vec128"><field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/>
<field name="v16_int8" type="v16i8"/><field name="v8_int16" type="v8i16"/>
<field name="v4_int32" type="v4i32"/><field name="v2_int64" type="v2i64"/><field name="uint128" type="uint128"/></union>
"""
}

#: by gdb's number
REGISTERS: tuple[Register, ...] = tuple(register for group in _FEATURES.values() for register in group)


def _describe() -> str:
    parts = ['<?xml version="1.0"?>\n<!DOCTYPE target SYSTEM "gdb-target.dtd">\n<target version="1.0">']
    parts.append("<architecture>i386:x86-64</architecture>")
    number = 0
    for feature, group in _FEATURES.items():
        parts.append(f'<feature name="{feature}">{_TYPES.get(feature, "")}')
        for register in group:
            parts.append(
                f'<reg name="{register.name}" bitsize="{8 * register.size}" type="{register.kind}" regnum="{number}"/>'
            )
            number += 1
        parts.append("</feature>")
    return "\n".join([*parts, "</target>\n"])


#: the target description
TARGET_XML = _describe()


def pack_all(vmsa: Vmsa) -> bytes:
    """All registers, as `g` wants them."""
    return b"".join(register.read(vmsa).to_bytes(32, "little")[: register.size] for register in REGISTERS)


def unpack_all(vmsa: Vmsa, data: bytes) -> None:
    """The other way, `G`. Raises ValueError if these are not all of them."""
    if len(data) != sum(register.size for register in REGISTERS):
        raise ValueError("registers are missing")
    at = 0
    for register in REGISTERS:
        register.write(vmsa, int.from_bytes(data[at : at + register.size], "little"))
        at += register.size
