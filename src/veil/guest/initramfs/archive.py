# SPDX-License-Identifier: GPL-2.0-or-later
"""The initramfs: Debian's static busybox, the agent as process 1, and kernel modules if asked for.

The archive is in the 'newc' cpio format (Linux Documentation/driver-api/early-userspace/buffer-format.rst), not
compressed: loading a few more megabytes costs the host nothing, decompressing them costs the guest emulated time. The
same inputs give the same bytes, since the archive is measured at launch.
"""

import stat
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from veil.cache import Cache
from veil.guest.agent.build import build_agent
from veil.guest.apt import Apt
from veil.guest.errors import GuestImageError
from veil.guest.linux.modules import collect_modules, present_modules

# The agent's way out. Built into Debian's 6.12 cloud kernel, modules of its 6.1; a kernel without a module tree must
# have them built in.
_CHANNEL = ("virtio_pci", "virtio_console")
# Attestation reports through configfs (/sys/kernel/config/tsm/report), which kernels have from 6.7 on; before it, what
# the driver asks the crypto API for by name: "gcm(aes)".
_TSM = "tsm"
_ATTESTATION = ("aes_generic", "ctr", "ghash_generic", "gcm", "sev_guest")
BUSYBOX = "busybox-static"
_PACKAGES = "package"
_DIRECTORIES = (
    "bin", "dev", "etc", "home", "lib", "lib/veil", "mnt", "opt", "proc", "root", "run", "sbin", "sys", "tmp", "usr",
    "usr/bin", "usr/lib", "usr/sbin", "var", "var/log", "var/tmp",
)  # fmt: skip
_MODULES = "lib/veil/modules"
_DRIVER = "veil"
#: Where veil.ko is.
DRIVER_FILE = f"{_MODULES}.d/{_DRIVER}.ko"
#: what VeilS-KCI's policy is, for process 1; not there if it is off
LOCK_DOWN_FILE = "lib/veil/lock-down"
_FILES = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": b"root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/hostname": b"veil\n",
    "etc/hosts": b"127.0.0.1 localhost veil\n::1 localhost\n",
    "etc/profile": b"export PS1='veil:\\w\\$ '\n",
}


@dataclass(frozen=True)
class Node:
    """A member of the archive. `mode` has its type; `data` is a file's contents or a link's target."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)

    @classmethod
    def file(cls, data: bytes, permissions: int = 0o644) -> "Node":
        """A regular file."""
        return cls(stat.S_IFREG | permissions, data)

    @classmethod
    def link(cls, target: str) -> "Node":
        """A symbolic link."""
        return cls(stat.S_IFLNK | 0o777, target.encode())


def pack_cpio(nodes: Mapping[str, Node]) -> bytes:
    """A newc archive of the nodes by path (without a leading slash); directories come before what they hold."""
    out = bytearray()
    for number, name in enumerate(sorted(nodes), 1):
        if name.startswith("/") or not name or ".." in name.split("/"):
            raise GuestImageError(f"bad path in the initramfs: {name!r}")
        _member(out, number, name.encode(), nodes[name])
    _member(out, 0, b"TRAILER!!!", Node(0))
    return bytes(out) + bytes(-len(out) % 512)


def _member(out: bytearray, number: int, name: bytes, node: Node) -> None:
    links = 2 if stat.S_ISDIR(node.mode) else 1
    fields = (number, node.mode, 0, 0, links, 0, len(node.data), 0, 0, *node.device, len(name) + 1, 0)
    out += b"070701" + b"".join(b"%08x" % value for value in fields) + name + b"\0"
    out += bytes(-len(out) % 4)
    out += node.data
    out += bytes(-len(out) % 4)


def build_initramfs(
    cache: Cache,
    *,
    module_tree: Path | None = None,
    modules: Sequence[str] = (),
    driver: bytes | None = None,
    driver_options: str = "",
    extra: Mapping[str, Node] | None = None,
    progress: Callable[[str], None] | None = None,
) -> bytes:
    """The archive. `modules` are inserted at start, in this order, with what they depend on; a name may be followed by
    a space and parameters. `driver` is veil.ko, which comes before them, with the parameters
    `driver_options`. `extra` adds or replaces members."""
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
    nodes |= _module_nodes(module_tree, modules, driver, driver_options)
    nodes |= extra or {}
    _add_parents(nodes)
    return pack_cpio(nodes)


def unpacked_package(cache: Cache, package: str, progress: Callable[[str], None] | None = None) -> Path:
    """A folder with the files of a Debian package; once fetched it is used until its cache entry is removed."""
    key = kept_package(cache, package) or Apt(cache).archive_name(package).removesuffix(".deb")

    def build(directory: Path) -> None:
        if progress:
            progress(f"fetching {package}")
        Apt(cache).unpack(package, directory)

    return cache.entry(_PACKAGES, key, build)


def kept_package(cache: Cache, package: str) -> str | None:
    """The newest version of a package that is in the cache: its key."""
    return max((key for key in cache.keys(_PACKAGES) if key.startswith(package + "_")), default=None)


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
    tree: Path | None, modules: Sequence[str], driver: bytes | None, driver_options: str
) -> dict[str, Node]:
    own = [(_DRIVER, driver)] if driver is not None else []
    if tree is None:
        if not modules:
            return _module_list(own, {_DRIVER: driver_options})
        raise GuestImageError(
            "kernel modules are wanted, but none lie beside the kernel (lib/modules/RELEASE, modules/)"
        )
    present = set(present_modules(tree, [*_CHANNEL, _TSM, *_ATTESTATION]))
    wanted = [*(name for name in _CHANNEL if name in present), *modules]
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
