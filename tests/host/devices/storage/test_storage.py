# SPDX-License-Identifier: GPL-2.0-or-later
"""A raw image, an overlay over it, and what a snapshot takes of both."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veil.host import HostError
from veil.host.devices import Blank, Overlay, RawImage, StorageError
from veil.host.devices.storage import overlay as overlay_module
from veil.host.saved_state import require_like

SIZE = 5 * 4096 + 512
CONTENT = bytes(range(256)) * (SIZE // 256)


@contextmanager
def raw(path: Path, *, write: bool = False) -> Iterator[RawImage]:
    with open(path, "r+b" if write else "rb", buffering=0) as stream:
        yield RawImage(cast("BinaryIO", stream), str(path), read_only=not write)


def unnamed() -> BinaryIO:
    return cast("BinaryIO", tempfile.TemporaryFile(buffering=0))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(CONTENT)
    return path


class TestRawImage:
    def test_reads_and_writes_go_to_the_file(self, image: Path) -> None:
        with raw(image, write=True) as disk:
            assert (disk.size, disk.read_only) == (SIZE, False)
            assert disk.read(512, 1024) == CONTENT[512:1536]
            disk.write(512, b"x" * 512)
            disk.flush()
        assert image.read_bytes() == CONTENT[:512] + b"x" * 512 + CONTENT[1024:]

    def test_an_odd_end_is_not_part_of_the_disk(self, tmp_path: Path) -> None:
        (tmp_path / "odd").write_bytes(bytes(1000))
        with raw(tmp_path / "odd") as disk:
            assert disk.size == 512

    def test_a_file_that_shrinks_is_an_io_error(self, image: Path) -> None:
        with raw(image) as disk:
            os.truncate(image, 1024)
            with pytest.raises(StorageError, match="has become shorter"):
                disk.read(512, 1024)

    def test_a_read_only_image_is_not_written(self, image: Path) -> None:
        with raw(image) as disk, pytest.raises(StorageError):
            disk.write(0, bytes(512))
        assert image.read_bytes() == CONTENT

    def test_what_cannot_be_a_disk(self, tmp_path: Path) -> None:
        (tmp_path / "small").write_bytes(bytes(511))
        with pytest.raises(HostError, match="has only 511 bytes"), raw(tmp_path / "small"):
            pass
        (tmp_path / "small").write_bytes(b"")
        with pytest.raises(HostError, match="is empty"), raw(tmp_path / "small"):
            pass
        (tmp_path / "other").write_bytes(b"QFI\xfb" + bytes(1020))
        with pytest.raises(HostError, match="is a qcow2 image"), raw(tmp_path / "other"):
            pass
        with pytest.raises(HostError, match="neither a file nor a block device"), raw(Path("/dev/null")):
            pass

    def test_a_snapshot_knows_the_image_again(self, image: Path) -> None:
        with raw(image) as disk:
            state = disk.dump()
        with raw(image) as disk:
            disk.load(state)
        os.utime(image, ns=(0, state["changed_ns"] + 1))
        with raw(image) as disk, pytest.raises(HostError, match="was changed since the snapshot"):
            disk.load(state)
        os.truncate(image, 4096)
        with raw(image) as disk, pytest.raises(HostError, match=f"has 4096 bytes; in the snapshot it had {SIZE}"):
            disk.load(state)


sectors = st.integers(0, SIZE // 512 - 1)


@settings(max_examples=60)
@given(st.lists(st.tuples(sectors, st.integers(1, 12), st.integers(0, 255)), max_size=12), sectors, st.integers(1, 41))
def test_an_overlay_reads_as_if_the_image_were_written(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, int, int]], start: int, count: int
) -> None:
    image = tmp_path_factory.getbasetemp() / "under an overlay"
    image.write_bytes(CONTENT)
    model = bytearray(CONTENT)
    with raw(image) as base, unnamed() as first, unnamed() as second:
        disk = Overlay(base, first)
        for sector, length, value in writes:
            data = bytes((value,)) * 512 * min(length, SIZE // 512 - sector)
            disk.write(512 * sector, data)
            model[512 * sector : 512 * sector + len(data)] = data
        end = min(512 * (start + count), SIZE)
        assert disk.read(512 * start, end - 512 * start) == model[512 * start : end]
        assert disk.read(0, SIZE) == model
        again = Overlay(base, second)
        require_like(disk.dump(), again.dump())
        again.load(disk.dump())
        assert again.read(0, SIZE) == model
    assert image.read_bytes() == CONTENT


def test_a_scratch_disk_is_zeros_until_it_is_written() -> None:
    with unnamed() as stream:
        disk = Overlay(Blank(1 << 40), stream)
        assert disk.read((1 << 40) - 1024, 1024) == bytes(1024)
        disk.write((1 << 40) - 512, b"x" * 512)
        assert disk.read((1 << 40) - 1024, 1024) == bytes(512) + b"x" * 512
        assert not disk.read_only
        disk.flush()


def test_a_snapshot_keeps_a_bounded_amount(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay_module, "MAX_SAVED", 2 * 4096)
    with unnamed() as stream:
        disk = Overlay(Blank(1 << 20), stream)
        disk.write(0, bytes(8192))
        disk.dump()
        disk.write(8192, bytes(512))
        with pytest.raises(HostError, match="at most 0 MiB of that"):
            disk.dump()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"size": 512}, HostError),
        ({"blocks": bytes(7)}, ValueError),
        ({"blocks": (5).to_bytes(8, "little")}, ValueError),
        ({"blocks": (1 << 63).to_bytes(8, "little")}, ValueError),
        ({"blocks": bytes(16), "data": bytes(8192)}, ValueError),
        ({"data": bytes(100)}, ValueError),
    ],
    ids=["another size", "a cut number", "beyond the end", "far beyond", "twice the same", "too little data"],
)
def test_nonsense_in_a_snapshot_is_refused(change: dict[str, object], error: type[Exception]) -> None:
    with unnamed() as one, unnamed() as two:
        disk = Overlay(Blank(5 * 4096), one)
        disk.write(0, b"x" * 512)
        with pytest.raises(error):
            Overlay(Blank(5 * 4096), two).load(disk.dump() | change)
