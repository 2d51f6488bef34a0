# SPDX-License-Identifier: GPL-2.0-or-later
"""Exceptions of the policy: read-only data that the kernel may write all the same, symbol by symbol.

Nobody but the service can write these pages. A store that stays within the symbol is made by it, whatever it stores: a
pointer there leads into verified code or nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from veil.formats.kci import MemoryType
from veil.formats.page_sizes import PAGE_SIZE
from veil.services.context import GuestMemory
from veil.services.kci.errors import ImageError
from veil.services.kci.guarded_pages import GuardedPages
from veil.services.kci.kernel_image import AddressRange, KernelImage
from veil.services.kci.modules import ModuleRefused, Prepared
from veil.services.kci.modules.elf import ModuleElf
from veil.services.kci.ranges import KernelRanges

__all__ = ["GuardedData", "module_data", "pages_around", "writable_data"]

_READ_ONLY = (MemoryType.RODATA, MemoryType.RO_AFTER_INIT)


class GuardedData(GuardedPages):
    """The pages in which a symbol lies that the kernel may write; `place` is all of it, and has its name."""

    def __init__(self, place: AddressRange, pages: Sequence[int], guest: GuestMemory) -> None:
        super().__init__(place.start - place.start % PAGE_SIZE, pages, guest)
        self.place = place

    def store(self, address: int, data: bytes) -> bool:
        """Store, if all of it is the symbol's."""
        inside = self.place.start <= address and address + len(data) <= self.place.end
        if inside:
            self._write(address, data)
        return inside


def pages_around(place: AddressRange) -> AddressRange:
    """The whole pages in which it lies."""
    return AddressRange(place.start - place.start % PAGE_SIZE, -(-place.end // PAGE_SIZE) * PAGE_SIZE)


def writable_data(image: KernelImage, ranges: KernelRanges, symbols: Iterable[str]) -> list[AddressRange]:
    """Where the kernel's symbols lie that it may write. Raises ImageError for one that cannot be an exception."""
    return [_place(image, ranges, symbol) for symbol in symbols]


def _place(image: KernelImage, ranges: KernelRanges, symbol: str) -> AddressRange:
    start = image.symbols.get(symbol)
    if start is None:
        raise ImageError(f"the kernel is to write {symbol}, and has no symbol of that name")
    if image.symbols.names.count(symbol) > 1:
        raise ImageError(f"the kernel is to write {symbol}, and has several symbols of that name")
    if start in ranges.text:
        raise ImageError(f"the kernel is to write {symbol}, which is code: of code there are no exceptions")
    whole = next((piece for piece in ranges.read_only if start in piece), None)
    if whole is None:
        raise ImageError(f"the kernel is to write {symbol}, which is no read-only data: it may write that as it is")
    # As the kernel itself knows sizes (kallsyms_lookup_size_offset): up to the next symbol.
    return AddressRange(start, min(image.symbols.after(start), whole.end), symbol)


def module_data(body: bytes, prepared: Prepared, symbols: Iterable[str]) -> list[AddressRange]:
    """Where the symbols of a module lie that the kernel may write; `body` is its file. Raises ModuleRefused for one
    that cannot be an exception: whoever names it relies on it."""
    elf, found = ModuleElf(body), []
    names = [elf.symbol_name(number) for number in range(len(elf.symbols))]
    for symbol in symbols:
        numbers = [number for number, name in enumerate(names) if name == symbol]
        start = prepared.symbols.get(symbol)
        if len(numbers) != 1 or start is None:
            raise ModuleRefused(f"the kernel is to write its {symbol}, and it has no symbol, or several, of that name")
        end = start + int(elf.symbols["size"][numbers[0]])
        memory = (prepared.memory[kind] for kind in _READ_ONLY if kind in prepared.memory)
        if not any(piece.address <= start < end <= piece.end for piece in memory):
            raise ModuleRefused(f"the kernel is to write its {symbol}, which is none of its read-only data")
        found.append(AddressRange(start, end, f"{prepared.name}/{symbol}"))
    return found
