# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver is built against Debian's headers, for the kernel that it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from veil.cache import Cache
from veil.guest.driver.build import build_driver, driver_sources, has_headers
from veil.guest.errors import GuestImageError
from veil.guest.linux.kernel import Kernel, debian_kernel


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    return debian_kernel(Cache())


def test_built_for_the_kernel(kernel: Kernel) -> None:
    module = build_driver(Cache(), kernel)
    assert module.startswith(b"\x7fELF")
    assert b"vermagic=" + kernel.release.encode() + b" SMP" in module
    assert b"license=GPL" in module
    assert str(Path.home()).encode() + b"/" not in module, "a path of this machine is in the module"


def test_sources() -> None:
    assert {"Kbuild", "main.c", "call.c", "veil.h", "log/log.c", "log/log.h"} <= driver_sources().keys()
    for name, data in driver_sources().items():
        assert b"SPDX-License-Identifier: GPL-2.0" in data.splitlines()[0], name


def test_other_kernels(kernel: Kernel) -> None:
    other = Kernel(kernel.vmlinux, "6.12.3-mine", kernel.banner, None, "mine")
    assert has_headers(kernel.release)
    assert not has_headers(other.release)
    with pytest.raises(GuestImageError, match="no headers for it"):
        build_driver(Cache(), other)
