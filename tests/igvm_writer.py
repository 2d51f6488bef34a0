# SPDX-License-Identifier: GPL-2.0-or-later
"""IGVM files written by hand from the format's definition (igvm_defs), as wrong as a test wants them.

Nothing here is the product's: its layouts must read what another reader of the definition writes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

__all__ = ["PAGE", "IgvmWriter", "vmsa"]

PAGE = 4096
SNP = 2

#: name -> offset in a VMSA (APM volume 2, table B-4), of 64-bit fields
_VMSA = {
    "efer": 0xD0, "cr4": 0x148, "cr3": 0x150, "cr0": 0x158, "dr7": 0x160, "dr6": 0x168, "rflags": 0x170, "rip": 0x178,
    "rsp": 0x1D8, "g_pat": 0x268, "sev_features": 0x3B0, "xcr0": 0x3E8,
}  # fmt: skip
_SEGMENTS = {"es": 0x00, "cs": 0x10, "ss": 0x20, "ds": 0x30, "fs": 0x40, "gs": 0x50, "gdtr": 0x60, "idtr": 0x80}


def vmsa(vmpl: int = 0, segments: Mapping[str, tuple[int, int, int, int]] | None = None, **registers: int) -> bytes:
    """A page; `segments`: (selector, attributes, limit, base). In long mode unless told otherwise."""
    page = bytearray(PAGE)
    flat = dict.fromkeys(("es", "ss", "ds", "fs", "gs"), (0x10, 0xC93, 0xFFFFFFFF, 0))
    chosen = {**flat, "cs": (8, 0xA9B, 0xFFFFFFFF, 0), "gdtr": (0, 0, 0, 0), "idtr": (0, 0, 0, 0), **(segments or {})}
    for name, values in chosen.items():
        struct.pack_into("<HHIQ", page, _SEGMENTS[name], *values)
    long_mode = {
        "efer": 0x1D00, "cr4": 0x620, "cr0": 0x80050033, "dr7": 0x400, "dr6": 0xFFFF0FF0, "rflags": 2,
        "g_pat": 0x0007040600070406, "sev_features": 1, "xcr0": 1,
    }  # fmt: skip
    for name, value in {**long_mode, **registers}.items():
        struct.pack_into("<Q", page, _VMSA[name], value)
    page[0xCA] = vmpl
    struct.pack_into("<I", page, 0x408, 0x1F80)
    struct.pack_into("<H", page, 0x410, 0x37F)
    return bytes(page)


@dataclass
class IgvmWriter:
    """A file, header by header. Compatibility mask 1 is SEV-SNP's, unless a test says otherwise."""

    version: int = 1
    _headers: list[tuple[int, Callable[[int], bytes], bytes | None, bytes]] = field(default_factory=list)

    def raw(self, kind: int, content: bytes, padding: bytes = b"\0") -> Self:
        """Any header."""
        self._headers.append((kind, lambda _: content, None, padding))
        return self

    def _with_data(self, kind: int, form: Callable[[int], bytes], data: bytes | None, offset: int | None) -> Self:
        if offset is not None:
            return self.raw(kind, form(offset))
        if data is None:
            return self.raw(kind, form(0))
        self._headers.append((kind, form, data, b"\0"))
        return self

    def platform(self, mask: int = 1, kind: int = SNP, version: int = 1, vtl: int = 2, boundary: int = 0) -> Self:
        return self.raw(0x001, struct.pack("<IBBHQ", mask, vtl, kind, version, boundary))

    def policy(self, policy: int, mask: int = 1, reserved: int = 0) -> Self:
        return self.raw(0x101, struct.pack("<QII", policy, mask, reserved))

    def relocatable(self, mask: int = 1) -> Self:
        return self.raw(0x102, struct.pack("<IHBBQQQQQ", mask, 0, 0, 0, PAGE, 0, PAGE, 0, 1 << 20))

    def page_table(self, mask: int = 1) -> Self:
        return self.raw(0x103, struct.pack("<IHBBQQQ", mask, 0, 0, 0, 0, PAGE, PAGE))

    def area(self, index: int, size: int = PAGE, data: bytes | None = None, offset: int | None = None) -> Self:
        return self._with_data(0x301, lambda at: struct.pack("<QII", size, index, at), data, offset)

    def page(
        self,
        gpa: int,
        data: bytes | None = None,
        mask: int = 1,
        flags: int = 0,
        kind: int = 0,
        reserved: int = 0,
        offset: int | None = None,
    ) -> Self:
        return self._with_data(
            0x302, lambda at: struct.pack("<QIIIHH", gpa, mask, at, flags, kind, reserved), data, offset
        )

    def insert(self, gpa: int, index: int, mask: int = 1) -> Self:
        return self.raw(0x303, struct.pack("<QII", gpa, mask, index))

    def context(
        self, gpa: int, page: bytes, vp: int = 0, mask: int = 1, reserved: int = 0, offset: int | None = None
    ) -> Self:
        return self._with_data(0x304, lambda at: struct.pack("<QIIHH", gpa, mask, at, vp, reserved), page, offset)

    def required(self, gpa: int, size: int, mask: int = 1, flags: int = 0, reserved: int = 0) -> Self:
        return self.raw(0x305, struct.pack("<QIIII", gpa, mask, size, flags, reserved))

    def parameter(self, kind: int, index: int, offset: int = 0) -> Self:
        return self.raw(kind, struct.pack("<II", index, offset))

    def id_block(self, content: bytes) -> Self:
        return self.raw(0x30B, content)

    def error_range(self, gpa: int, size: int, mask: int = 1) -> Self:
        return self.raw(0x30D, struct.pack("<QII", gpa, mask, size))

    def write(
        self,
        *,
        magic: bytes = b"IGVM",
        architecture: int = 0,
        page_size: int = PAGE,
        total: int | None = None,
        offset: int | None = None,
        size: int | None = None,
        checksum: int | None = None,
        gap: int = 0,
    ) -> bytes:
        """The whole file. What is not given is right. `gap`: bytes between the fixed header and the others."""
        fixed_size = 32 if self.version > 1 else 24
        begin = fixed_size + gap
        sizes = [8 + -(-len(form(0)) // 8) * 8 for _, form, _, _ in self._headers]
        at = begin + sum(sizes)
        headers, content = bytearray(), bytearray()
        for kind, form, data, padding in self._headers:
            body = form(at + len(content))
            headers += struct.pack("<II", kind, len(body)) + body + padding * (-len(body) % 8)
            content += data or b""
        fixed = struct.pack(
            "<4sIIII", magic, self.version, begin if offset is None else offset,
            len(headers) if size is None else size, at + len(content) if total is None else total,
        )  # fmt: skip
        rest = struct.pack("<II", architecture, page_size) if self.version > 1 else b""
        if checksum is None:
            checksum = zlib.crc32(fixed + bytes(4) + rest + headers)
        return fixed + struct.pack("<I", checksum) + rest + bytes(gap) + headers + content
