# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest's image is made of on this computer: kernel, packages and the programs that its compiler made."""

from __future__ import annotations

import hashlib
from pathlib import Path

from veil.cache import Cache, cache_key
from veil.guest.agent.build import agent_at_hand
from veil.guest.driver.build import driver_at_hand
from veil.guest.enclaves.starter.build import starter_at_hand
from veil.guest.errors import GuestImageError
from veil.guest.initramfs.audit_tools import AUDIT_PACKAGES
from veil.guest.initramfs.contents import BUSYBOX
from veil.guest.linux.kernel import Kernel, is_series, kept_kernel, open_kernel, packages_of
from veil.guest.ovmf.package import firmware_at_hand
from veil.guest.packages import kept_package

__all__ = ["igvm_ingredient", "ingredients_at_hand", "kernel_at_hand", "still_to_make", "with_firmware"]


def ingredients_at_hand(cache: Cache, kernel: str, *, driver: bool, enclaves: bool = False) -> dict[str, str] | None:
    """Name -> checksum of each, for a kernel as users name it (a Debian series or a file) and, if wanted, the
    driver with its tools, and what starts enclaves. None if one must be fetched or built first.

    The checksums are of the very files, not of what they were made from: after a change of compiler, headers or
    packages there are others.
    """
    found: dict[str, str | None] = {}
    if is_series(kernel):
        key = kept_kernel(cache, kernel)
        if key is None:
            return None
        release = key.partition("_")[0].removeprefix("linux-image-")
        found[key] = _digest(cache.manifest(packages_of(kernel), key))
    else:
        try:
            opened = open_kernel(cache, Path(kernel))
        except GuestImageError:
            return None
        release = opened.release
        found[kernel] = _kernel_digest(opened)
    for package in (BUSYBOX, *(AUDIT_PACKAGES if driver else ())):
        name = kept_package(cache, package)
        if name is None:
            return None
        found[name] = _digest(cache.manifest("package", name))
    found["agent"] = _digest(agent_at_hand(cache))
    if driver:
        found["driver"] = _digest(driver_at_hand(cache, release))
    if driver and enclaves:
        found["veil-enclave"] = _digest(starter_at_hand(cache))
    whole = {name: digest for name, digest in found.items() if digest is not None}
    return whole if len(whole) == len(found) else None


def kernel_at_hand(cache: Cache, kernel: str | None) -> dict[str, str] | None:
    """Of an image whose kernel alone can be a package, for a file comes with its firmware (`with_firmware`)."""
    if kernel is None or not is_series(kernel):
        return {}
    key = kept_kernel(cache, kernel)
    digest = _digest(cache.manifest(packages_of(kernel), key)) if key is not None else None
    return {key: digest} if key is not None and digest is not None else None


def with_firmware(
    cache: Cache, found: dict[str, str], kernel: str | None, firmware: str, initrd: str | None
) -> dict[str, str] | None:
    """The same and what firmware adds: itself, the very file of the kernel if it is not Debian's, the user's initrd."""
    at_hand = firmware_at_hand(cache, firmware)
    if at_hand is None:
        return None
    name, path = at_hand
    files = {f"firmware {name}": path}
    if kernel is not None and not is_series(kernel):
        files[f"kernel file {kernel}"] = Path(kernel)
    if initrd is not None:
        files[f"initrd {initrd}"] = Path(initrd)
    more = {name: _digest(path) for name, path in files.items()}
    return found | {name: digest for name, digest in more.items() if digest is not None} if all(more.values()) else None


def igvm_ingredient(path: Path) -> dict[str, str] | None:
    """All of an image that is in this IGVM file; None if it cannot be read."""
    digest = _digest(path)
    return {f"IGVM file {path}": digest} if digest is not None else None


def still_to_make(cache: Cache, series: str) -> set[str]:
    """Of the image with a Debian kernel: "agent" and "driver" if they are still to be built, "packages" if some
    are still to be fetched."""
    missing = set() if agent_at_hand(cache) is not None else {"agent"}
    key = kept_kernel(cache, series)
    release = key.partition("_")[0].removeprefix("linux-image-") if key is not None else None
    if release is None or driver_at_hand(cache, release) is None:
        missing.add("driver")
    names = [kept_package(cache, package) for package in (BUSYBOX, *AUDIT_PACKAGES)]
    headers = "driver" not in missing or (release is not None and cache.lookup("headers", release, verify=False))
    if key is None or None in names or not headers:
        missing.add("packages")
    return missing


def _digest(path: Path | None) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path is not None else None
    except OSError:
        return None


def _kernel_digest(kernel: Kernel) -> str:
    """The kernel's, and how its module tree looks: modules go into the image, too."""
    tree = sorted(kernel.modules.rglob("*")) if kernel.modules is not None else []
    status = ((path, path.stat()) for path in tree if path.is_file())
    return cache_key(kernel.digest(), *(f"{path} {item.st_size} {item.st_mtime_ns}" for path, item in status))
