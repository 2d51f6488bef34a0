# SPDX-License-Identifier: GPL-2.0-or-later
"""What is in the initramfs: Debian's static busybox, the agent as process 1, and kernel modules if asked for."""

import stat
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from veil.cache import Cache
from veil.formats.user_network import GATEWAY, GUEST, NAME_SERVER, PREFIX_LENGTH
from veil.guest.agent.build import build_agent
from veil.guest.errors import GuestImageError
from veil.guest.initramfs.archive import Node, pack_cpio
from veil.guest.linux.modules import collect_modules, present_modules
from veil.guest.packages import unpacked_package

__all__ = ["BUSYBOX", "DRIVER_FILE", "LOCK_DOWN_FILE", "NETWORK_FILE", "build_initramfs", "fetch_busybox"]

# The agent's way out. Built into Debian's 6.12 cloud kernel, modules of its 6.1; a kernel without a module tree must
# have them built in.
_CHANNEL = ("virtio_pci", "virtio_console")
# What finds disks, and the file system that Debian's images have; ext4 is built into Debian's cloud kernels.
_DISKS = ("virtio_blk", "ext4")
_NETWORK = "virtio_net"
# Attestation reports through configfs (/sys/kernel/config/tsm/report), which kernels have from 6.7 on; before it, what
# the driver asks the crypto API for by name: "gcm(aes)".
_TSM = "tsm"
_ATTESTATION = ("aes_generic", "ctr", "ghash_generic", "gcm", "sev_guest")
BUSYBOX = "busybox-static"
_DIRECTORIES = (
    "bin", "dev", "etc", "home", "lib", "lib/veil", "mnt", "opt", "proc", "root", "run", "sbin", "sys", "tmp", "usr",
    "usr/bin", "usr/lib", "usr/sbin", "var", "var/log", "var/tmp",
)  # fmt: skip
_MODULES = "lib/veil/modules"
_DRIVER = "veil"
#: Where veil.ko is.
DRIVER_FILE = f"{_MODULES}.d/{_DRIVER}.ko"
_NETWORK_SCRIPT = f"""#!/bin/sh
ip address add {GUEST}/{PREFIX_LENGTH} dev eth0 && ip link set eth0 up && ip route add default via {GATEWAY}
"""
#: what process 1 runs when the modules are there, if there is a network card
NETWORK_FILE = "lib/veil/network"
_NETWORK_FILES = {
    NETWORK_FILE: Node.file(_NETWORK_SCRIPT.encode(), 0o755),
    "etc/resolv.conf": Node.file(f"nameserver {NAME_SERVER}\n".encode()),
}
#: what VeilS-KCI's policy is, for process 1; not there if it is off
LOCK_DOWN_FILE = "lib/veil/lock-down"
_FILES = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": b"root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/hostname": b"veil\n",
    "etc/hosts": b"127.0.0.1 localhost veil\n::1 localhost\n",
    "etc/profile": b"export PS1='veil:\\w\\$ '\n",
}


def build_initramfs(
    cache: Cache,
    *,
    module_tree: Path | None = None,
    modules: Sequence[str] = (),
    driver: bytes | None = None,
    driver_options: str = "",
    extra: Mapping[str, Node] | None = None,
    disks: bool = False,
    network: bool = False,
    progress: Callable[[str], None] | None = None,
) -> bytes:
    """The archive. `modules` are inserted at start, in this order, with what they depend on; a name may be followed by
    a space and parameters. `driver` is veil.ko, which comes before them, with the parameters
    `driver_options`. `extra` adds or replaces members. `disks`: with the drivers for them. `network`: with the card's
    driver, and what process 1 brings it up by."""
    busybox = fetch_busybox(cache, progress)
    nodes = {name: Node(stat.S_IFDIR | 0o755) for name in _DIRECTORIES}
    nodes["tmp"] = nodes["var/tmp"] = Node(stat.S_IFDIR | 0o1777)
    nodes["root"] = Node(stat.S_IFDIR | 0o700)
    # The kernel opens these before process 1 has mounted /dev.
    nodes["dev/console"] = Node(stat.S_IFCHR | 0o600, device=(5, 1))
    nodes["dev/null"] = Node(stat.S_IFCHR | 0o666, device=(1, 3))
    nodes |= {name: Node.file(data) for name, data in _FILES.items()}
    for applet in _applets(busybox):
        nodes[applet] = Node.link("/bin/busybox")
    nodes["bin/busybox"] = Node.file(busybox.read_bytes(), 0o755)
    nodes["init"] = Node.file(build_agent(cache).read_bytes(), 0o755)
    devices = (*(_DISKS if disks else ()), *((_NETWORK,) if network else ()))
    nodes |= _module_nodes(module_tree, modules, driver, driver_options, devices)
    if network:
        nodes |= _NETWORK_FILES
    nodes |= extra or {}
    _add_parents(nodes)
    return pack_cpio(nodes)


def fetch_busybox(cache: Cache, progress: Callable[[str], None] | None = None) -> Path:
    """Debian's static busybox; like the kernel, once fetched it is used until its cache entry is removed."""
    place = unpacked_package(cache, BUSYBOX, progress)
    for name in ("bin/busybox", "usr/bin/busybox"):
        if (place / name).is_file():
            return place / name
    raise GuestImageError(f"{place.name} holds no busybox")


def _applets(busybox: Path) -> list[str]:
    """The paths of its applets, as busybox itself would install them. It is static, so it runs on any x86-64 Linux."""
    try:
        done = subprocess.run([busybox, "--list-full"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise GuestImageError(f"cannot run {busybox}: {error}") from error
    return [line for line in done.stdout.split() if line != "bin/busybox"]


def _module_nodes(
    tree: Path | None, modules: Sequence[str], driver: bytes | None, driver_options: str, devices: Sequence[str]
) -> dict[str, Node]:
    own = [(_DRIVER, driver)] if driver is not None else []
    if tree is None:
        if not modules:
            return _module_list(own, {_DRIVER: driver_options})
        raise GuestImageError(
            "kernel modules are wanted, but none lie beside the kernel (lib/modules/RELEASE, modules/)"
        )
    present = set(present_modules(tree, [*_CHANNEL, *devices, _TSM, *_ATTESTATION]))
    wanted = [*(name for name in _CHANNEL if name in present), *modules]
    wanted += [name for name in devices if name in present]
    if _TSM in present:
        wanted += [name for name in _ATTESTATION if name in present]
    parameters = {name.replace("-", "_"): rest for name, _, rest in (module.partition(" ") for module in wanted)}
    collected = collect_modules(tree, list(parameters))
    parameters[_DRIVER] = driver_options
    return _module_list([*own, *collected], parameters)


def _module_list(collected: Sequence[tuple[str, bytes]], parameters: Mapping[str, str]) -> dict[str, Node]:
    if not collected:
        return {}
    nodes = {f"{_MODULES}.d/{name}.ko": Node.file(data) for name, data in collected}
    lines = [f"/{_MODULES}.d/{name}.ko {parameters.get(name, '')}".rstrip() for name, _ in collected]
    nodes[_MODULES] = Node.file("".join(line + "\n" for line in lines).encode())
    return nodes


def _add_parents(nodes: dict[str, Node]) -> None:
    for name in list(nodes):
        while "/" in name:
            name = name.rpartition("/")[0]
            nodes.setdefault(name, Node(stat.S_IFDIR | 0o755))
