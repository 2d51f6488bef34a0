# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks as users name them, and what of them is opened when."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from veil.cvm import Configuration, Disk
from veil.cvm.disks import READ_ONLY, TEMPORARY, WRITE, Disks
from veil.cvm.kept_snapshots import with_disks
from veil.errors import VeilError
from veil.host.devices import MAX_DISKS, StorageError


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"x" * 4096)
    return path


@pytest.mark.parametrize(
    ("text", "disk"),
    [
        ("/a/disk.img", Disk("/a/disk.img", READ_ONLY)),
        ("/a/disk.img,write", Disk("/a/disk.img", WRITE)),
        ("/a/disk.img,tmp", Disk("/a/disk.img", TEMPORARY)),
        ("/a/odd,name", Disk("/a/odd,name", READ_ONLY)),
        ("scratch:1M", Disk(None, TEMPORARY, 1 << 20)),
    ],
)
def test_what_users_write(text: str, disk: Disk) -> None:
    assert Disk.parse(text) == disk
    assert str(disk) == text


def test_a_path_is_meant_from_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Disk.parse("scratch,tmp") == Disk(str(tmp_path / "scratch"), TEMPORARY)


@pytest.mark.parametrize("text", ["", ",write", "scratch:", "scratch:0", "scratch:100", "scratch:much", "a\0b"])
def test_what_is_not_a_disk(text: str) -> None:
    with pytest.raises(VeilError) as caught:
        Disk.parse(text)
    assert "\n" not in str(caught.value)


def test_a_configuration_has_disks() -> None:
    configuration = Configuration.make(disks=["/a.img,tmp", Disk(None, TEMPORARY, 512)], owners=())
    assert configuration.disks == (Disk("/a.img", TEMPORARY), Disk(None, TEMPORARY, 512))
    assert Configuration.parse(configuration.pack()) == configuration
    with pytest.raises(VeilError, match=f"at most {MAX_DISKS} disks"):
        Configuration.make(disks=["/a.img"] * (MAX_DISKS + 1), owners=())


def test_modes(image: Path) -> None:
    disks = Disks([Disk(str(image), TEMPORARY), Disk(str(image)), Disk(None, TEMPORARY, 1024)])
    overlay, plain, scratch = disks.backends
    overlay.write(0, b"y" * 512)
    scratch.write(512, b"z" * 512)
    assert overlay.read(0, 512) == b"y" * 512
    assert plain.read(0, 512) == b"x" * 512
    assert scratch.read(0, 1024) == bytes(512) + b"z" * 512
    with pytest.raises(StorageError):
        plain.write(0, bytes(512))
    disks.close()
    writing = Disks([Disk(str(image), WRITE)])
    writing.backends[0].write(0, b"w" * 512)
    writing.close()
    assert image.read_bytes() == b"w" * 512 + b"x" * 3584


def test_an_image_that_is_written_to_is_one_guests_alone(image: Path) -> None:
    many = [Disks([Disk(str(image))]), Disks([Disk(str(image), TEMPORARY)])]
    with pytest.raises(VeilError, match="is in use"):
        Disks([Disk(str(image), WRITE)])
    for disks in many:
        disks.close()
    writing = Disks([Disk(str(image), WRITE)])
    with pytest.raises(VeilError, match="is in use"):
        Disks([Disk(str(image))])
    writing.close()
    Disks([Disk(str(image))]).close()


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").write_bytes(b"")
    for name, words in (
        ("missing", "No such file"), (".", "directory"), ("pipe", "neither a file nor a block device"),
        ("empty", "is empty"),
    ):  # fmt: skip
        with pytest.raises(VeilError, match=words) as caught:
            Disks([Disk(os.path.join(tmp_path, name))])
        assert "\n" not in str(caught.value)


def test_a_snapshot_does_not_choose_which_images_are_opened() -> None:
    saved = Configuration.make(disks=["/theirs.img,write", "scratch:1M"], owners=())
    mine = ["/mine.img,write", "scratch:1M"]
    assert [disk.image for disk in with_disks(saved, mine).disks] == ["/mine.img", None]
    for other in ([], ["/mine.img", "scratch:1M"], ["/mine.img,write"], ["/mine.img,write", "scratch:2M"]):
        with pytest.raises(VeilError, match=r"to be named with `disks`: /theirs\.img,write, scratch:1M; not"):
            with_disks(saved, other)
