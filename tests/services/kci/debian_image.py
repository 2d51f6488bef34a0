# SPDX-License-Identifier: GPL-2.0-or-later
"""The image of Debian's kernel as it is measured, for VeilS-KCI's rules."""

from __future__ import annotations

from veil.cache import Cache
from veil.guest.linux.kernel import Kernel, debian_kernel
from veil.services.kci import KernelImage, Segment

__all__ = ["kernel_image"]


def kernel_image(kernel: Kernel | None = None) -> KernelImage:
    """The image of Debian's default kernel, or another's."""
    load = (kernel or debian_kernel(Cache())).load()
    return KernelImage([Segment(piece.virtual, piece.address, piece.data) for piece in load.segments])
