# SPDX-License-Identifier: GPL-2.0-or-later
"""Exceptions of code integrity's policy that a kernel cannot have are refused before the launch."""

from __future__ import annotations

import pytest

from veil.cache import Cache
from veil.formats.kci_settings import ON, KciSettings
from veil.guest.elf import ElfKernel
from veil.guest.errors import GuestImageError
from veil.guest.linux.kernel import debian_kernel
from veil.image.launch_image import build_image
from veil.image.services_image import protected_services


@pytest.fixture(scope="module")
def kernel() -> ElfKernel:
    return debian_kernel(Cache()).load()


def _image(kernel: ElfKernel, *writable: str) -> object:
    services = protected_services(KciSettings(mode=ON, writable=writable))
    return build_image(kernel, b"", "", memory=256 << 20, vcpus=1, monitor=True, cpuid=[], services=services)


@pytest.mark.parametrize(
    ("symbol", "why"),
    [
        ("nosuch", "has no symbol of that name"),
        ("schedule", "is code: of code there are no exceptions"),
        ("modprobe_path", "is no read-only data: it may write that as it is"),
        ("__already_done.0", "has several symbols of that name"),
    ],
)
def test_one_line_says_why(kernel: ElfKernel, symbol: str, why: str) -> None:
    with pytest.raises(GuestImageError, match=f"^code integrity: the kernel is to write {symbol}, (which|and) {why}$"):
        _image(kernel, "sys_call_table", symbol)


def test_what_it_has_is_measured(kernel: ElfKernel) -> None:
    """A module's symbol is looked for when the module comes."""
    digests = {_image(kernel, *some).digest() for some in ([], ["sys_call_table"], ["loop/lo_fops"])}  # type: ignore[attr-defined]
    assert len(digests) == 3
