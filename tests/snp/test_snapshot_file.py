# SPDX-License-Identifier: GPL-2.0-or-later
"""The snapshot file format."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veil.formats.page_sizes import PAGE_SIZE
from veil.snp import snapshot_file as module
from veil.snp.errors import SnapshotError
from veil.snp.memory import Memory
from veil.snp.snapshot_file import read_snapshot, write_snapshot

_PAGES = 512


def _memory(written: dict[int, bytes]) -> Memory:
    memory = Memory(_PAGES * PAGE_SIZE)
    for page, data in written.items():
        memory.buf[page * PAGE_SIZE : page * PAGE_SIZE + len(data)] = data
    return memory


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.integers(0, _PAGES - 1), st.binary(min_size=1, max_size=PAGE_SIZE), max_size=8),
    st.dictionaries(st.text(max_size=8), st.binary(max_size=200), max_size=4),
)
def test_what_is_written_is_read(tmp_path: Path, written: dict[int, bytes], sections: dict[str, bytes]) -> None:
    memory = _memory(written)
    path = tmp_path / "s"
    write_snapshot(path, memory=memory.buf, sections=sections)
    snapshot = read_snapshot(path)
    assert snapshot.sections == sections
    snapshot.verify()
    copy = snapshot.map_memory()
    assert copy.buf == memory.buf
    # Writing to the copy leaves the file alone.
    copy.buf[0] ^= 0xFF
    assert read_snapshot(path).map_memory().buf == memory.buf


def test_empty_pages_take_no_disk(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write_snapshot(path, memory=Memory(64 << 20).buf, sections={})
    assert os.stat(path).st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("place", ["header", "index", "section"])
def test_damage_is_noticed_at_opening(tmp_path: Path, place: str) -> None:
    path = tmp_path / "s"
    write_snapshot(path, memory=_memory({}).buf, sections={"a": b"payload" * 10})
    data = bytearray(path.read_bytes())
    at = {"header": 30, "index": module._HEADER.size + 5, "section": data.find(b"payload") + 3}[place]
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(SnapshotError, match="damaged"):
        read_snapshot(path)


def test_damaged_memory_is_noticed_by_verify(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write_snapshot(path, memory=_memory({7: b"hello"}).buf, sections={})
    data = bytearray(path.read_bytes())
    data[data.find(b"hello")] ^= 1
    path.write_bytes(data)
    with pytest.raises(SnapshotError, match="memory"):
        read_snapshot(path).verify()


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "s"
    path.write_bytes(data)
    with pytest.raises(SnapshotError, match="not a snapshot"):
        read_snapshot(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write_snapshot(path, memory=_memory({500: b"x"}).buf, sections={})
    os.truncate(path, path.stat().st_size - PAGE_SIZE)
    with pytest.raises(SnapshotError, match="damaged"):
        read_snapshot(path)


def test_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write_snapshot(path, memory=_memory({}).buf, sections={})
    data = bytearray(path.read_bytes())
    data[8] += 1
    path.write_bytes(data)
    with pytest.raises(SnapshotError, match="version"):
        read_snapshot(path)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(SnapshotError, match="disk is full"):
        write_snapshot(tmp_path / "s", memory=_memory({}).buf, sections={})
    assert list(tmp_path.iterdir()) == []


def test_sections_that_could_not_be_read_again_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_SECTIONS", 100)
    most = 100 + _PAGES * PAGE_SIZE // 512
    write_snapshot(tmp_path / "s", memory=_memory({}).buf, sections={"one": bytes(most)})
    assert len(read_snapshot(tmp_path / "s").sections["one"]) == most
    with pytest.raises(SnapshotError, match=f"at most {most} can be kept"):
        write_snapshot(tmp_path / "t", memory=_memory({}).buf, sections={"one": bytes(most), "two": b"x"})
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    "index",
    [
        b"[]", b"{", b"null", b"[" * 100_000, b'{"sections": []}', b'{"sections": {"a": [1]}}',
        b'{"sections": {"a": [-999999, 1, ""]}}', b'{"sections": {"a": [1e999, 1, ""]}}',
        b'{"sections": {}, "sections_length": 1e999, "memory_size": 1, "memory_crc": 0}',
        b'{"sections": {}, "sections_length": ' + b"9" * 5000 + b', "memory_size": 1, "memory_crc": 0}',
        b'{"sections": {}, "sections_length": 1, "memory_size": ' + b"9" * 4300 + b', "memory_crc": 0}',
    ],
    ids=lambda index: repr(index[:40]),
)  # fmt: skip
def test_an_index_of_somebody_elses_making(tmp_path: Path, index: bytes) -> None:
    """Its checksum is right: the author of the index makes that too."""
    header = module._HEADER.pack(module._MAGIC, module._VERSION, len(index), hashlib.sha256(index).digest())
    (tmp_path / "s").write_bytes(header + index)
    with pytest.raises(SnapshotError, match="snapshot"):
        read_snapshot(tmp_path / "s")
