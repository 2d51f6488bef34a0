# SPDX-License-Identifier: GPL-2.0-or-later
"""What follows from the kernel's image as it was measured: derived when it is needed first, the same each time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from veil.formats.kci_settings import BUILD_KEYS, KciSettings
from veil.formats.page_sizes import PAGE_SIZE
from veil.services.context import KernelPiece
from veil.services.kci.errors import ImageError
from veil.services.kci.image import AddressRange, KernelImage, Segment
from veil.services.kci.kernel_code import KernelCode
from veil.services.kci.modules import ExportedSymbols, Exports, Keyring, ModuleSpace, read_exports
from veil.services.kci.ranges import KernelRanges, kernel_ranges, physical_range

__all__ = ["MeasuredKernel"]


class MeasuredKernel:
    """The kernel, from its segments' copies. All of it raises ImageError, TableError or ModuleRefused where the image
    cannot be understood."""

    def __init__(self, pieces: Sequence[KernelPiece], settings: KciSettings) -> None:
        self._pieces = pieces
        self._settings = settings

    @cached_property
    def image(self) -> KernelImage:
        """Segments and symbols."""
        if not self._pieces:
            raise ImageError("the launch gave the services no copy of the kernel")
        return KernelImage(
            [Segment(piece.virtual, piece.gpa, piece.copy.read(0, piece.copy.size)) for piece in self._pieces]
        )

    @cached_property
    def code(self) -> KernelCode:
        """The rules for its text."""
        return KernelCode(self.image)

    @cached_property
    def ranges(self) -> KernelRanges:
        """What is code, what is read-only."""
        return kernel_ranges(self.image)

    def pages(self, piece: AddressRange) -> range:
        """The GPAs of a range's pages."""
        physical = physical_range(self.image, piece)
        return range(physical.start, physical.end, PAGE_SIZE)

    def address_of(self, gpa: int) -> int | None:
        """Where the kernel's image has a GPA's byte."""
        for piece in self._pieces:
            if piece.gpa <= gpa < piece.gpa + piece.copy.size:
                return piece.virtual + gpa - piece.gpa
        return None

    def keyring(self) -> Keyring:
        """Who may sign modules."""
        certificates = b""
        if self._settings.keys == BUILD_KEYS:
            start, size = (self.image.symbols[f"system_certificate_list{end}"] for end in ("", "_size"))
            certificates = self.image.read(start, int.from_bytes(self.image.read(size, 8), "little"))
        return Keyring.of_kernel(certificates).with_certificates(self._settings.allowed_certificates)

    def exported(self) -> ExportedSymbols:
        """What modules can be linked to. A new one each time: modules are added to it."""
        strings = self.image.between("__start___ksymtab_strings", "__stop___ksymtab_strings") or self._strings()
        found = []
        for name in ("__ksymtab", "__ksymtab_gpl"):
            table = self.image.between(f"__start_{name}", f"__stop_{name}")
            found.append({} if table is None else read_exports(table[1], table[0], strings[1], strings[0]))
        return ExportedSymbols(Exports(*found))

    def _strings(self) -> tuple[int, bytes]:
        # The linker gives the names no symbols of their own; they are in read-only data.
        data = self.ranges.read_only[0]
        return data.start, self.image.read(data.start, data.size)

    def module_space(self) -> ModuleSpace:
        """Where modules may lie."""
        symbols = self.image.symbols
        return ModuleSpace.of_kernel({name: symbols[name] for name in ("_end", "__per_cpu_end")})
