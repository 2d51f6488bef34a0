# SPDX-License-Identifier: GPL-2.0-or-later
"""What is in the initramfs: programs, directories, and modules after what they need."""

from __future__ import annotations

import gzip
import lzma
import re
import stat
from pathlib import Path

import pytest
import zstandard

from tests.guest.initramfs.newc import unpack
from veil.cache import Cache
from veil.formats.user_network import GATEWAY, GUEST, NAME_SERVER
from veil.guest import agent
from veil.guest.agent.build import build_agent
from veil.guest.errors import GuestImageError
from veil.guest.initramfs import contents
from veil.guest.initramfs.archive import Node
from veil.guest.initramfs.contents import LOCK_DOWN_FILE, NETWORK_FILE, build_initramfs
from veil.guest.linux.modules import collect_modules


def tree(place: Path) -> Path:
    def module(name: str, depends: str) -> bytes:
        return b"\x7fELF...\0license=GPL\0depends=" + depends.encode() + b"\0name=" + name.encode() + b"\0"

    folder = place / "kernel/drivers"
    folder.mkdir(parents=True)
    (folder / "top-one.ko.xz").write_bytes(lzma.compress(module("top_one", "middle,base_two")))
    (folder / "middle.ko.gz").write_bytes(gzip.compress(module("middle", "base_two,inside")))
    (folder / "base_two.ko.zst").write_bytes(zstandard.compress(module("base_two", "")))
    (folder / "broken.ko.xz").write_bytes(b"\xfd7zXZ nonsense")
    (folder / "needy.ko").write_bytes(module("needy", "not-there"))
    (place / "modules.builtin").write_text("kernel/fs/inside.ko\n")
    return place


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    names = [name for name, _ in collect_modules(tree(tmp_path), ["top-one", "base_two", "inside"])]
    assert names == ["base_two", "middle", "top_one"]


@pytest.mark.parametrize(("name", "message"), [("absent", "no module absent"), ("broken", "damaged kernel module"),
                                               ("needy", "no module not_there .needed by needy.")])  # fmt: skip
def test_modules_that_fail(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(GuestImageError, match=message):
        collect_modules(tree(tmp_path), [name])


def test_process_1_looks_where_they_are() -> None:
    source = (Path(agent.__file__).parent / "src/process1.c").read_text()
    said = dict(re.findall(r'#define (\w+) "/(lib/veil/[^"]+)"', source))
    assert said == {"MODULE_LIST": contents._MODULES, "LOCK_DOWN_POLICY": LOCK_DOWN_FILE, "NETWORK": NETWORK_FILE}


@pytest.mark.e2e  # its programs are Debian's
def test_initramfs(tmp_path: Path) -> None:
    cache = Cache()
    options = {"module_tree": tree(tmp_path), "modules": ["top-one debug=1"], "extra": {"opt/x/y": Node.file(b"z")}}
    archive = build_initramfs(cache, **options)  # type: ignore[arg-type]
    assert archive == build_initramfs(cache, **options)  # type: ignore[arg-type]
    found = unpack(archive)
    for name in found:
        parent = name.rpartition("/")[0]
        assert not parent or stat.S_ISDIR(found[parent][0])
    assert found["init"][1] == build_agent(cache).read_bytes()
    assert found["init"][0] == stat.S_IFREG | 0o755
    assert found["bin/sh"] == (stat.S_IFLNK | 0o777, b"/bin/busybox", (0, 0))
    assert found["dev/console"] == (stat.S_IFCHR | 0o600, b"", (5, 1))
    assert found["lib/veil/modules"][1].decode().splitlines() == [
        "/lib/veil/modules.d/base_two.ko", "/lib/veil/modules.d/middle.ko", "/lib/veil/modules.d/top_one.ko debug=1",
    ]  # fmt: skip
    assert found["opt/x/y"][1] == b"z"
    assert "opt/x" in found


@pytest.mark.e2e
def test_a_networks_driver_and_addresses(tmp_path: Path) -> None:
    place = tree(tmp_path)
    (place / "kernel/drivers/virtio_net.ko").write_bytes(b"\x7fELF...\0license=GPL\0depends=middle\0name=virtio_net\0")
    found = unpack(build_initramfs(Cache(), module_tree=place, network=True))
    assert found["lib/veil/modules"][1].decode().split()[-1] == "/lib/veil/modules.d/virtio_net.ko"
    assert found[NETWORK_FILE][0] == stat.S_IFREG | 0o755
    for address in (f"{GUEST}/24", GATEWAY):
        assert address in found[NETWORK_FILE][1].decode()
    assert found["etc/resolv.conf"][1].decode() == f"nameserver {NAME_SERVER}\n"
    without = unpack(build_initramfs(Cache(), module_tree=place))
    assert not {NETWORK_FILE, "etc/resolv.conf", "lib/veil/modules"} & set(without)


def test_modules_without_a_tree() -> None:
    with pytest.raises(GuestImageError, match="none lie beside the kernel"):
        build_initramfs(Cache(), modules=["tsm"])
