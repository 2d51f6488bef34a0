# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules for the kernel's own text, made from its image alone."""

from __future__ import annotations

from veil.services.kci.explain_code import CodeRules
from veil.services.kci.kernel_image import KernelImage, text_range
from veil.services.kci.patch_tables import kernel_tables
from veil.services.kci.surroundings import kernel_surroundings

__all__ = ["KernelCode"]


class KernelCode(CodeRules):
    """CodeRules of a KernelImage. Raises ImageError or TableError for an image that cannot be understood."""

    def __init__(self, image: KernelImage) -> None:
        self.image = image
        text = text_range(image)
        tables = kernel_tables(image)
        super().__init__(
            text.start,
            image.read(text.start, text.size),
            tables,
            image.read,
            kernel_surroundings(image, text, tables),
            image.symbols.named(prefix="__SCT__").values(),
        )
