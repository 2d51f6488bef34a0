# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel image of a few pages, with tables, symbols and kallsyms as Linux 6.12 has them, made by hand."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from veil.services.kci import KernelImage, Segment

BASE = 0xFFFFFFFF81000000
TEXT_SIZE = 0x2000
TABLES = BASE + 0x4000
REPLACEMENTS = BASE + 0x8000
DATA = BASE + 0xA000
PHYSICAL = 0x1000000
SIZE = 0x10000

THUNKS = BASE + 0x1800
RETURN_THUNK = BASE + 0x1E00
SRSO_THUNK = BASE + 0x1E40
FENTRY = BASE + 0x1F00
NOP_FUNC, BUG_FUNC = BASE + 0x1F20, BASE + 0x1F40
FTRACE_CALLER, FTRACE_CALL = BASE + 0x1C00, BASE + 0x1C10
LIST_FUNC = BASE + 0x1D00

ENDBR = bytes.fromhex("f30f1efa")
NOP5 = bytes.fromhex("0f1f440000")


def call(place: int, target: int, opcode: int = 0xE8) -> bytes:
    """CALL rel32, or another branch of five bytes."""
    return struct.pack("<Bi", opcode, target - place - 5)


def jump(place: int, target: int) -> bytes:
    """JMP rel32."""
    return call(place, target, 0xE9)


class SmallKernel:
    """Put code and table entries in, then take the image."""

    def __init__(self) -> None:
        self.text = bytearray(b"\xcc" * TEXT_SIZE)
        self.data = bytearray(SIZE - (DATA - BASE))
        self.replacements = bytearray()
        self.sites: dict[str, list[tuple[int, ...]]] = {}
        self.symbols: dict[str, int] = {
            "_text": BASE,
            "_etext": BASE + TEXT_SIZE,
            "__x86_indirect_thunk_array": THUNKS,
            "__x86_indirect_thunk_rax": THUNKS,
            "__x86_indirect_thunk_rcx": THUNKS + 32,
            "__x86_return_thunk": RETURN_THUNK,
            "srso_return_thunk": SRSO_THUNK,
            "__fentry__": FENTRY,
            "nop_func": NOP_FUNC,
            "BUG_func": BUG_FUNC,
            "ftrace_caller": FTRACE_CALLER,
            "ftrace_call": FTRACE_CALL,
            "arch_ftrace_ops_list_func": LIST_FUNC,
        }
        self.put(FTRACE_CALL, call(FTRACE_CALL, LIST_FUNC))
        for name, at in (("indirectly_called", BASE + 0x1000), ("never_called_indirectly", BASE + 0x1040)):
            self.put(at, ENDBR)
            self.symbols[name] = at
        self.entry("__ibt_endbr_seal", BASE + 0x1040)

    def put(self, address: int, code: bytes) -> int:
        """Code at an address of the text; returns the address."""
        at = address - BASE
        assert at + len(code) <= TEXT_SIZE
        self.text[at : at + len(code)] = code
        return address

    def entry(self, table: str, *fields: int) -> None:
        """An entry of a table: its fields, addresses absolute."""
        self.sites.setdefault(table, []).append(fields)

    def alternative(self, site: int, length: int, replacement: bytes, feature: int, flags: int = 0) -> int:
        """An entry of .altinstructions; returns where the replacement lies."""
        source = REPLACEMENTS + len(self.replacements)
        self.replacements += replacement
        self.entry("__alt_instructions", site, source, feature, flags, length, len(replacement))
        return source

    def word(self, offset: int, value: int) -> int:
        """A variable of eight bytes; returns its address."""
        struct.pack_into("<Q", self.data, offset, value)
        return DATA + offset

    def image(self) -> KernelImage:
        """Link it."""
        memory = bytearray(SIZE)
        memory[:TEXT_SIZE] = self.text
        at = TABLES
        symbols = dict(self.symbols)
        for table in (*_FORMS, *(name for name in self.sites if name.startswith("__start_runtime_"))):
            first, last = _bounds(table)
            symbols[first] = at
            for fields in self.sites.get(table, []):
                piece = _pack(table, at, fields)
                memory[at - BASE : at - BASE + len(piece)] = piece
                at += len(piece)
            symbols[last] = at
            at = -(-at // 8) * 8
        assert at <= REPLACEMENTS
        memory[REPLACEMENTS - BASE : REPLACEMENTS - BASE + len(self.replacements)] = self.replacements
        memory[DATA - BASE :] = self.data
        memory += kallsyms(symbols)
        return KernelImage([Segment(BASE, PHYSICAL, bytes(memory))])

    def data_reader(self, address: int, length: int) -> bytes:
        """What the running kernel's variables hold."""
        return bytes(self.data[address - DATA : address - DATA + length])


_FORMS = {
    "__alt_instructions": "altinstr",
    "__retpoline_sites": "site",
    "__return_sites": "site",
    "__ibt_endbr_seal": "site",
    "__smp_locks": "site",
    "__start_mcount_loc": "address",
    "__start___jump_table": "jump",
    "__start_static_call_sites": "static call",
}


def _bounds(table: str) -> tuple[str, str]:
    if table.startswith("__start_"):
        return table, table.replace("__start_", "__stop_", 1)
    return table, table + "_end"


def _pack(table: str, at: int, fields: tuple[int, ...]) -> bytes:
    match _FORMS.get(table, "site"):
        case "altinstr":
            site, source, feature, flags, length, size = fields
            return struct.pack("<iiHHBB", site - at, source - at - 4, feature, flags, length, size)
        case "address":
            return struct.pack("<Q", fields[0])
        case "jump":
            code, target, key = fields
            return struct.pack("<iiq", code - at, target - at - 4, key - at - 8)
        case "static call":
            site, key = fields
            return struct.pack("<ii", site - at, key - at - 4)
        case _:
            return struct.pack("<i", fields[0] - at)


OFFSETS = ("absolute per-CPU", "plain", "own place")
"""What the offsets of kallsyms count from: up to 6.14, up to 6.19, 7.x."""


def kallsyms(
    symbols: Mapping[str, int],
    *,
    base: int = BASE,
    offsets: str = OFFSETS[0],
    alignment: int = 8,
    at: int | None = None,
) -> bytes:
    """Kallsyms tables as scripts/kallsyms.c lays them out, to lie at the address `at`.

    Each character is a token, two underscores are one."""
    ordered = sorted(symbols.items(), key=lambda symbol: symbol[1])
    pair = 0x01
    names = bytearray()
    markers = []
    for number, (name, address) in enumerate(ordered):
        if number % 256 == 0:
            markers.append(len(names))
        kind = "T" if base <= address < base + TEXT_SIZE else "D"
        coded = (kind + name).encode().replace(b"__", bytes([pair]))
        names += bytes([len(coded)]) if len(coded) < 0x80 else bytes([len(coded) & 0x7F | 0x80, len(coded) >> 7])
        names += coded
    tokens = [b"__" if code == pair else bytes([code]) if 0x20 < code < 0x7F else b"" for code in range(256)]
    index, end = [], 0
    for token in tokens:
        index.append(end)
        end += len(token) + 1
    result = bytearray()

    def add(part: bytes) -> None:
        result.extend(bytes(-len(result) % alignment) + part)

    add(struct.pack("<I", len(ordered)))
    add(bytes(names))
    add(struct.pack(f"<{len(markers)}I", *markers))
    add(b"".join(token + b"\0" for token in tokens))
    add(struct.pack("<256H", *index))
    add(b"")
    addresses = [address for _, address in ordered]
    match offsets:
        case "absolute per-CPU":
            # Negative offsets count down from the base.
            values = [base - 1 - address for address in addresses]
        case "plain":
            values = [address - base for address in addresses]
        case _:
            assert at is not None
            place = at + len(result)
            values = [address - (place + 4 * number) for number, address in enumerate(addresses)]
    add(struct.pack(f"<{len(values)}i", *values))
    # In 7.x the numbers of the names in their order follow at once.
    add(struct.pack("<Q", base) if offsets != OFFSETS[2] else bytes(3 * len(values)))
    return bytes(result)
