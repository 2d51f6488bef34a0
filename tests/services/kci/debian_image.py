# SPDX-License-Identifier: GPL-2.0-or-later
"""The image of Debian's kernel as it is measured, for VeilS-KCI's rules; what follows from it is derived once."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from veil.cache import Cache
from veil.guest.linux.kernel import Kernel, debian_kernel
from veil.services.kci import KernelCode, KernelImage, Segment, measured_kernel

__all__ = ["derived_once", "kernel_code", "kernel_image"]


def kernel_image(kernel: Kernel | None = None) -> KernelImage:
    """The image of Debian's default kernel, or another's."""
    load = (kernel or debian_kernel(Cache())).load()
    return _image(tuple(Segment(piece.virtual, piece.address, piece.data) for piece in load.segments))


def kernel_code(image: KernelImage) -> KernelCode:
    """The rules for its text: the caller's own, for modules that come and go change what they know of the code
    around."""
    return copy.copy(_code(image))


@functools.lru_cache(maxsize=4)
def _image(segments: tuple[Segment, ...]) -> KernelImage:
    return KernelImage(segments)


@functools.lru_cache(maxsize=4)
def _code(image: KernelImage) -> KernelCode:
    return KernelCode(image)


@contextmanager
def derived_once() -> Iterator[None]:
    """What follows from the image of the guests' kernel is the same for all of them. A service derives it after each
    restoration, for a snapshot has no objects in it, and that is most of what a test of one attack takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measured_kernel, "KernelImage", lambda segments: _image(tuple(segments)))
        patch.setattr(measured_kernel, "KernelCode", kernel_code)
        yield
