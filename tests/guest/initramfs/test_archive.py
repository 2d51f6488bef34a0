# SPDX-License-Identifier: GPL-2.0-or-later
import gzip
import lzma
import stat
import subprocess
from pathlib import Path

import pytest
import zstandard

from veil.cache import Cache
from veil.guest.agent.build import build_agent
from veil.guest.errors import GuestImageError
from veil.guest.initramfs.archive import Node, pack_cpio
from veil.guest.initramfs.contents import build_initramfs
from veil.guest.linux.modules import collect_modules


def unpack(archive: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """An independent reader of the newc format."""
    found, at, inodes = {}, 0, []
    while True:
        assert archive[at : at + 6] == b"070701"
        assert at % 4 == 0
        values = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name_at = at + 110
        name = archive[name_at : name_at + values[11] - 1].decode()
        assert archive[name_at + values[11] - 1] == 0
        data_at = name_at + values[11] + -(name_at + values[11]) % 4
        if name == "TRAILER!!!":
            assert not archive[data_at:].strip(b"\0")
            break
        assert values[2:4] + values[5:6] == [0, 0, 0], "no owners and no times: the archive is measured"
        found[name] = (values[1], archive[data_at : data_at + values[6]], (values[9], values[10]))
        inodes.append(values[0])
        at = data_at + values[6] + -values[6] % 4
    assert len(set(inodes)) == len(inodes)
    assert list(found) == sorted(found)
    return found


def test_members() -> None:
    archive = pack_cpio({"b": Node.link("a/c"), "a": Node(stat.S_IFDIR | 0o755), "a/c": Node.file(b"12345", 0o600)})
    assert unpack(archive) == {
        "a": (stat.S_IFDIR | 0o755, b"", (0, 0)),
        "a/c": (stat.S_IFREG | 0o600, b"12345", (0, 0)),
        "b": (stat.S_IFLNK | 0o777, b"a/c", (0, 0)),
    }


@pytest.mark.parametrize("name", ["/a", "a/../b", ""])
def test_bad_names(name: str) -> None:
    with pytest.raises(GuestImageError, match="bad path"):
        pack_cpio({name: Node.file(b"")})


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


def test_modules_without_a_tree() -> None:
    with pytest.raises(GuestImageError, match="none lie beside the kernel"):
        build_initramfs(Cache(), modules=["tsm"])


def test_agent_is_static_and_reproducible(tmp_path: Path) -> None:
    first, second = build_agent(Cache(tmp_path / "a")), build_agent(Cache(tmp_path / "b"))
    assert first.read_bytes() == second.read_bytes()
    headers = subprocess.run(["readelf", "-l", first], capture_output=True, text=True, check=True).stdout
    assert "INTERP" not in headers


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(GuestImageError, match="no C compiler"):
        build_agent(Cache(tmp_path))
    monkeypatch.setenv("CC", "false")
    with pytest.raises(GuestImageError, match="cannot compile"):
        build_agent(Cache(tmp_path))
