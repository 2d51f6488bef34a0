# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's kernel and its modules, as the package has them."""

from __future__ import annotations

import functools
import lzma
import re
from collections.abc import Sequence
from pathlib import Path

from tests.services.kci.debian_image import kernel_image
from veil.cache import Cache
from veil.guest.linux.kernel import Kernel, debian_kernel
from veil.services.kci import KernelImage
from veil.services.kci.modules import Exports, Keyring, kernel_exports, kernel_keyring

__all__ = [
    "KINDS",
    "exported",
    "image",
    "kernel",
    "keyring",
    "module_file",
    "module_path",
    "names",
    "with_dependencies",
]

#: Modules of different kinds: those with much code, with per-CPU variables, with tracepoints, assembler, static calls,
#: with exports for others, with tables of their own.
KINDS = (
    "dm-mod", "dm-crypt", "loop", "zram", "null_blk", "nbd", "virtio_blk", "virtio_net", "virtio_balloon", "dummy",
    "veth", "tun", "bridge", "vxlan", "wireguard", "bonding", "nf_tables", "nft_compat", "sch_fq", "tcp_bbr", "tls",
    "rds", "iscsi_tcp", "sunrpc", "nfs", "cifs", "xfs", "btrfs", "vfat", "isofs", "squashfs", "overlay", "nls_cp437",
    "raid6_pq", "aesni-intel", "aegis128-aesni", "serpent-avx2", "sev-guest", "kvm", "cpuid",
)  # fmt: skip


@functools.cache
def kernel() -> Kernel:
    """The one of the tests."""
    return debian_kernel(Cache())


@functools.cache
def _paths() -> dict[str, Path]:
    tree = kernel().modules
    assert tree is not None
    return {path.name.split(".")[0]: path for path in sorted(tree.rglob("*.ko.xz"))}


def module_path(name: str) -> Path:
    """A module's file, as the package has it."""
    return _paths()[name]


@functools.lru_cache(maxsize=40)
def module_file(name: str) -> bytes:
    """A module's file, as load_module() gets it."""
    return lzma.decompress(_paths()[name].read_bytes())


def with_dependencies(names: Sequence[str]) -> list[str]:
    """The modules, each after those that it needs."""
    done: dict[str, None] = {}
    by_name = {name.replace("-", "_"): name for name in _paths()}

    def visit(name: str) -> None:
        depends = re.search(rb"\0depends=([^\0]*)\0", module_file(name))
        for other in filter(None, (depends[1] if depends else b"").decode().split(",")):
            visit(by_name[other.replace("-", "_")])
        done.setdefault(name)

    for name in names:
        visit(name)
    return list(done)


def names() -> list[str]:
    """Of all modules of the package."""
    return list(_paths())


@functools.cache
def image() -> KernelImage:
    """The kernel's, as it is measured."""
    return kernel_image(kernel())


@functools.cache
def exported() -> Exports:
    """What the kernel exports."""
    return kernel_exports(image())


@functools.cache
def keyring() -> Keyring:
    """The keys that Debian's modules are signed with."""
    return kernel_keyring(image())
