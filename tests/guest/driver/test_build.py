# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver is built against Debian's headers, for the kernel that it is for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from veil.cache import Cache
from veil.guest.driver.build import build_driver, build_module, driver_sources
from veil.guest.linux.kernel import Kernel, debian_kernel, open_kernel


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    return debian_kernel(Cache())


@pytest.mark.e2e
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


def test_files_of_a_folder_have_no_variables_of_one_name() -> None:
    """They are compiled together, and the compiler takes two without a value for one."""
    where: dict[tuple[str, str], str] = {}
    for path, data in driver_sources().items():
        folder, _, _ = path.rpartition("/")
        for declared in re.findall(r"^static ([^(={]+);$", data.decode(), re.M) if path.endswith(".c") else ():
            for name in declared.split(","):
                variable = name.split("[")[0].split()[-1].lstrip("*")
                assert where.setdefault((folder, variable), path) == path, variable
    assert where["enc", "wanted"] == "enc/enc.c"


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("folder", "headers"),
    [
        ("usr/lib/modules/{}", "usr"),
        ("boot", "usr"),
        (".", "usr"),
        ("a/b/c", None),
        ("a/usr/b/c", None),
        ("src/boot", None),
    ],
)
def test_where_headers_are_looked_for(kernel: Kernel, tmp_path: Path, folder: str, headers: str | None) -> None:
    """Their Makefiles are run: what lies further up may be somebody else's."""
    for root in ("usr", "a", "a/b", "a/usr", "."):
        (tmp_path / root / f"src/linux-headers-{kernel.release}").mkdir(parents=True)
    place = tmp_path / folder.format(kernel.release)
    place.mkdir(parents=True, exist_ok=True)
    if headers is None:
        (tmp_path / "usr").rename(tmp_path / "other")
    (place / "vmlinux").write_bytes(kernel.vmlinux.read_bytes())
    found = open_kernel(Cache(), place / "vmlinux").headers
    assert found == (None if headers is None else tmp_path / headers)


@pytest.mark.e2e
def test_headers_that_lie_beside_a_kernel(kernel: Kernel, tmp_path: Path) -> None:
    """Packages of a Debian that is not the configured one, unpacked into one folder."""
    build_driver(Cache(), kernel)
    kept = Cache().lookup("headers", kernel.release, verify=False)
    assert kept is not None
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz").write_bytes(kernel.vmlinux.read_bytes())
    (tmp_path / "usr").symlink_to(kept / "usr")
    beside = open_kernel(Cache(), tmp_path / "boot/vmlinuz")
    assert beside.headers == tmp_path / "usr"
    sources = {"one.c": b'#include <linux/module.h>\nMODULE_LICENSE("GPL");\n', "Kbuild": b"obj-m := one.o\n"}
    assert build_module(Cache(), beside, "one", sources).startswith(b"\x7fELF")
