# SPDX-License-Identifier: GPL-2.0-or-later
"""What follows from the kernel's image as it was measured: derived when it is needed first, the same each time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from veil.formats.kci_settings import KciSettings
from veil.formats.page_sizes import PAGE_SIZE
from veil.services.context import KernelPiece
from veil.services.kci.errors import ImageError
from veil.services.kci.guarded_data import writable_data
from veil.services.kci.kernel_code import KernelCode
from veil.services.kci.kernel_image import AddressRange, KernelImage, Segment
from veil.services.kci.modules import ExportedSymbols, ModulePolicy, ModuleSpace, kernel_exports
from veil.services.kci.ranges import KernelRanges, kernel_ranges, physical_range

__all__ = ["MeasuredKernel"]


class MeasuredKernel:
    """The kernel, from its segments' copies. All of it raises KciErrors where the image
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

    @cached_property
    def writable(self) -> list[AddressRange]:
        """Its read-only data that the policy lets it write."""
        return writable_data(self.image, self.ranges, self._settings.writable_of())

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

    @cached_property
    def policy(self) -> ModulePolicy:
        """Who may vouch for modules."""
        return ModulePolicy.of(self._settings, self.image)

    def exported(self) -> ExportedSymbols:
        """What modules can be linked to. A new one each time: modules are added to it."""
        return ExportedSymbols(kernel_exports(self.image))

    @cached_property
    def module_space(self) -> ModuleSpace:
        """Where modules may lie."""
        return ModuleSpace.of_kernel(self.image)
