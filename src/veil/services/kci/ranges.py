# SPDX-License-Identifier: GPL-2.0-or-later
"""What of the kernel's image is code when it has booted, and what nobody may write to from then on.

arch/x86/kernel/vmlinux.lds.S and mark_rodata_ro() (arch/x86/mm/init_64.c) say where that ends: whole pages, between
symbols of the linker.
"""

from __future__ import annotations

from dataclasses import dataclass

from veil.formats.page_sizes import PAGE_SIZE
from veil.services.kci.errors import ImageError
from veil.services.kci.kernel_image import AddressRange, KernelImage, text_range

__all__ = ["KernelRanges", "kernel_ranges", "physical_range"]

# Inside of read-only data; listed by name, so that a kernel that keeps one elsewhere is noticed.
_KEPT = ("sys_call_table", "__start___ex_table", "__start_ro_after_init", "idt_table", "pv_ops", "empty_zero_page")
# Pages of their own outside of it that the kernel writes no more once it has booted (arch/x86/kernel/idt.c), or never:
# the page of zeros, which all processes share.
_OWN_PAGES = (("idt_table", 256 * 16), ("empty_zero_page", PAGE_SIZE))


@dataclass(frozen=True)
class KernelRanges:
    """Virtual addresses, whole pages."""

    text: AddressRange
    """Executable: entry code, retpoline thunks, templates of ftrace trampolines and the rest lie in it."""
    read_only: tuple[AddressRange, ...]
    """Data that the kernel write-protects itself: .rodata with what was writable up to the end of boot, __ex_table,
    the IDT; and the page of zeros."""
    gone: tuple[AddressRange, ...]
    """Freed at the end of boot: init sections, alternatives, gaps. Not code any more, whatever they hold."""
    kept: dict[str, int]
    """Tables that attackers like, all inside of `read_only`; those that this kernel has."""
    writable: dict[str, int]
    """Those of them that are not, because they share pages with other data."""


def kernel_ranges(image: KernelImage) -> KernelRanges:
    """The ranges of this kernel. Raises ImageError if its symbols do not say."""
    symbols = image.symbols
    text = text_range(image)
    whole_text = AddressRange(text.start, _up(text.end), "text")
    data = AddressRange(symbols["__start_rodata"], _up(symbols["__end_rodata"]), "read-only data")
    init = AddressRange(symbols["__init_begin"], _up(symbols["__init_end"]), "init sections")
    for piece in (whole_text, data, init):
        if piece.start % PAGE_SIZE or piece.size <= 0:
            raise ImageError(f"the kernel's {piece} does not consist of whole pages")
    if not whole_text.end <= data.start < data.end <= init.start:
        raise ImageError("the kernel's text, read-only data and init sections are not in this order")
    gone = [init]
    for start, end, name in (
        (whole_text.end, data.start, "gap behind text"),
        (data.end, symbols["_sdata"], "gap behind read-only data"),
    ):
        if start < end:
            gone.append(AddressRange(start, end, name))
    read_only = [data]
    for name, size in _OWN_PAGES:
        at = symbols.get(name)
        if at is not None and at not in data and at % PAGE_SIZE == 0 and size % PAGE_SIZE == 0:
            read_only.append(AddressRange(at, at + size, name))
    found = {name: at for name in _KEPT if (at := symbols.get(name)) is not None}
    kept = {name: at for name, at in found.items() if any(at in piece for piece in read_only)}
    return KernelRanges(
        text=whole_text,
        read_only=tuple(read_only),
        gone=tuple(gone),
        kept=kept,
        writable={name: at for name, at in found.items() if name not in kept},
    )


def physical_range(image: KernelImage, piece: AddressRange) -> AddressRange:
    """Where a range lies in guest-physical memory: the kernel is mapped as a whole, at one distance."""
    for segment in image.segments:
        if segment.virtual <= piece.start < segment.range.end:
            distance = segment.virtual - segment.physical
            return AddressRange(piece.start - distance, piece.end - distance, piece.name)
    raise ImageError(f"{piece} is not in the kernel image")


def _up(address: int) -> int:
    return -(-address // PAGE_SIZE) * PAGE_SIZE
