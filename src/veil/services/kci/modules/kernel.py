# SPDX-License-Identifier: GPL-2.0-or-later
"""What a module needs of the kernel, out of the kernel's measured image: keys, exported symbols, addresses."""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass

from veil.services.kci.errors import ImageError
from veil.services.kci.kernel_image import KernelImage
from veil.services.kci.modules.exports import Exports, read_exports
from veil.services.kci.modules.layout import RO_AFTER_INIT
from veil.services.kci.modules.signature import Keyring

__all__ = ["ModuleSpace", "kernel_exports", "kernel_keyring"]

# arch/x86/include/asm/pgtable_64_types.h: MODULES_VADDR of a kernel without KASLR, MODULES_END.
_MODULES_START, _MODULES_END = 0xFFFF_FFFF_A000_0000, 0xFFFF_FFFF_FF00_0000
_MODULE_PERCPU = 128 << 10
_MAX_LATER, _MAX_NAME = 16, 64


@dataclass(frozen=True)
class ModuleSpace:
    """What the kernel may choose from: addresses of modules' memory, offsets of their per-CPU variables."""

    addresses: range
    percpu: range
    later: Collection[str] = RO_AFTER_INIT
    """Names of sections that are read-only after init."""

    @classmethod
    def of_kernel(cls, image: KernelImage) -> ModuleSpace:
        """Modules lie where code reaches the kernel, after the kernel itself. Their per-CPU variables come after the
        kernel's own, in the reserved part of the first chunk (mm/percpu.c): not long after, for the part has 8 KiB, or
        a few times that. Raises ImageError."""
        end = image.symbols["__per_cpu_end"]
        addresses = range(max(image.symbols["_end"], _MODULES_START), _MODULES_END)
        return cls(addresses, range(end, end + _MODULE_PERCPU), _read_only_later(image))


def _read_only_later(image: KernelImage) -> Collection[str]:
    """kernel/module/strict_rwx.c: the table ro_after_init, which ends where another symbol begins."""
    symbols = image.symbols
    start = symbols.get("ro_after_init")
    if start is None:
        return RO_AFTER_INIT
    size = min(symbols.after(start) - start, 8 * _MAX_LATER)
    names = set()
    for (pointer,) in struct.iter_unpack("<Q", image.read(start, size - size % 8)):
        if not pointer:
            break  # What lies behind it up to the next symbol.
        names.add(image.read(pointer, _MAX_NAME).split(b"\0")[0].decode("latin-1"))
    if not names >= RO_AFTER_INIT:
        raise ImageError(f"the kernel's table of sections that are read-only after init is not sound: {sorted(names)}")
    return frozenset(names)


def kernel_keyring(image: KernelImage) -> Keyring:
    """The certificates that are built into the kernel. Raises ImageError, ModuleRefused."""
    size = int.from_bytes(image.read(image.symbols["system_certificate_list_size"], 8), "little")
    return Keyring.of_kernel(image.read(image.symbols["system_certificate_list"], size))


def kernel_exports(image: KernelImage) -> Exports:
    """What the kernel exports. Raises ImageError, ModuleRefused."""
    flags = image.between("__start___kflagstab", "__stop___kflagstab")
    found: list[dict[str, int]] = []
    for name in ("__ksymtab", "__ksymtab_gpl"):
        table = image.between(f"__start_{name}", f"__stop_{name}")
        if table is None and found and flags is not None:
            found.append({})
            continue
        if table is None:
            raise ImageError(f"the kernel image has no {name}")
        address, data = table
        # The names are not far from it, in the same segment.
        segment = next(piece for piece in image.segments if address in piece.range)
        found.append(read_exports(data, address, segment.data, segment.virtual))
    return Exports.of_tables(found[0], found[1], None if flags is None else flags[1])
