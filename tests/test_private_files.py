# SPDX-License-Identifier: GPL-2.0-or-later
"""What Veil makes is its owner's alone, and no module makes files in another way."""

from __future__ import annotations

import ast
import functools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import veil
from veil import installation
from veil.cache import Cache, CacheError
from veil.errors import VeilError
from veil.formats.log import ENTRY_HEADER, AuditRecord, EntryKind, pack_records, parse_entries
from veil.formats.merkle import CompactRange, leaf_hash
from veil.formats.page_sizes import PAGE_SIZE
from veil.private_files import (
    copy_file,
    make_folder,
    open_own,
    own_folder,
    replacing,
    tighten,
    write_new,
    write_private,
)
from veil.remote.log.export import DirectorySink, export
from veil.remote.log.folder import LogFolder
from veil.remote.log.reader import LogState
from veil.snp.memory import Memory
from veil.snp.snapshot_file import write_snapshot

_SOURCES = Path(veil.__file__).parent


@pytest.fixture(params=[0o000, 0o022, 0o777], ids=["umask 000", "umask 022", "umask 777"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def _wider(folder: Path) -> list[str]:
    """What others may touch, in the folder and with it."""
    found = [folder, *folder.rglob("*")]
    return [f"{_mode(path):o} {path}" for path in found if not path.is_symlink() and _mode(path) & 0o077]


def test_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    make_folder(tmp_path / "a/b")
    write_private(tmp_path / "a/b/file", b"secret")
    write_new(tmp_path / "a/b/new", "secret")
    with replacing(tmp_path / "a/b/stream", durable=True) as stream:
        stream.write(b"secret")
    os.close(open_own(tmp_path / "a/b/grows", os.O_RDWR | os.O_CREAT))
    write_snapshot(tmp_path / "c/snapshot", memory=Memory(PAGE_SIZE * 512).buf, sections={})
    for folder in ("a", "a/b", "c"):
        assert _mode(tmp_path / folder) == 0o700
    for file in ("a/b/file", "a/b/new", "a/b/stream", "a/b/grows", "c/snapshot"):
        assert _mode(tmp_path / file) == 0o600


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("private", "snapshot"):
        (tmp_path / name).symlink_to(victim)
    write_private(tmp_path / "private", b"secret")
    write_snapshot(tmp_path / "snapshot", memory=Memory(PAGE_SIZE * 512).buf, sections={})
    assert victim.read_text() == "mine"
    assert not (tmp_path / "private").is_symlink()
    assert not (tmp_path / "snapshot").is_symlink()
    for name, target in (("link", victim), ("hanging", tmp_path / "nowhere")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(FileExistsError):
            write_new(tmp_path / name, b"secret")
        with pytest.raises(OSError, match="symbolic links"):
            open_own(tmp_path / name, os.O_RDWR | os.O_CREAT)
    assert victim.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_what_is_no_plain_file_of_ours_is_not_written_in_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    os.link(tmp_path / "file", tmp_path / "second name")
    os.mkfifo(tmp_path / "pipe")
    for name in ("second name", "pipe"):
        with pytest.raises(PermissionError, match="not a plain file"):
            open_own(tmp_path / name, os.O_RDWR)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")

    def fail() -> None:
        with replacing(tmp_path / "file") as stream:
            stream.write(b"new")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "old"}


def test_open_streams_are_written_to(tmp_path: Path) -> None:
    with open(tmp_path / "out", "w+b") as stream:
        write_private(Path(f"/dev/fd/{stream.fileno()}"), b"text")
        assert stream.read() == b"text"
    with pytest.raises(OSError, match="No space"):
        write_private(Path("/dev/full"), b"text")


def test_a_copy_keeps_its_owners_bits(tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("#!")
    (tmp_path / "tool").chmod(0o755)
    copy_file(tmp_path / "tool", tmp_path / "copy")
    assert _mode(tmp_path / "copy") == 0o700


def _build(directory: Path) -> None:
    """As compilers and dpkg do it: with the umask, or with modes from an archive."""
    (directory / "sub").mkdir()
    (directory / "sub/tool").write_bytes(b"#!")
    (directory / "sub/tool").chmod(0o755)
    (directory / "link").symlink_to("sub/tool")


def test_a_cache_is_closed_to_others(tmp_path: Path, open_umask: None) -> None:
    cache = Cache(tmp_path / "home/veil")
    place = cache.entry("kind", "key", _build)
    cache.directory("apt/lists")
    cache.remove("other", "key")
    assert _wider(tmp_path / "home") == []
    assert _mode(place / "sub/tool") == 0o700
    assert cache.lookup("kind", "key") == place


def test_a_cache_of_an_earlier_version_is_tightened(tmp_path: Path, open_umask: None) -> None:
    root = tmp_path / "veil"
    (root / "snapshots").mkdir(parents=True)
    (root / "snapshots/old.snapshot").write_bytes(b"keys")
    (root / "outside").symlink_to(tmp_path)
    outside = _mode(tmp_path)
    Cache(root).directory("snapshots")
    assert _wider(root) == []
    assert _mode(tmp_path) == outside


def test_folders_of_other_users_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path / "veil")
    cache.directory("tmp")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    with pytest.raises(CacheError, match=rf"{tmp_path}/veil cannot be used: it belongs to user \d+, not to you") as one:
        cache.entry("kind", "key", _build)
    with pytest.raises(VeilError, match="it belongs to user") as two:
        installation.owner_fingerprint()
    assert "\n" not in str(one.value) + str(two.value)
    assert not (tmp_path / "veil/kind").exists()


def test_a_link_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "veil").symlink_to("elsewhere")
    own_folder(tmp_path / "veil")
    real = os.lstat

    def lstat(path: Path) -> os.stat_result:
        values = list(real(path))
        values[stat.ST_UID] += path == tmp_path / "veil"
        return os.stat_result(values)

    monkeypatch.setattr("os.lstat", lstat)
    with pytest.raises(PermissionError, match="belongs to user"):
        own_folder(tmp_path / "veil")


def test_keys_are_closed_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_umask: None) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    installation.owner_fingerprint()
    installation.endorsement()
    assert _wider(tmp_path / "share") == []


def test_a_fetched_and_exported_log_is_closed_to_others(tmp_path: Path, open_umask: None) -> None:
    body = pack_records([AuditRecord(1300, b"audit(1790000000.000:1): x")])
    entry = next(iter(parse_entries(ENTRY_HEADER.pack(0, 1, EntryKind.RECORDS, len(body)) + body)))
    tree = CompactRange()
    tree.append(leaf_hash(entry.raw))
    folder = LogFolder(tmp_path / "logs/mine")
    with folder.lock():
        folder.add([entry], LogState(b"key", tree))
    sink = DirectorySink(tmp_path / "export")
    with sink.lock():
        assert export(folder, sink) == 1
    assert len(list(tmp_path.rglob("*"))) == 10
    assert _wider(tmp_path / "logs") + _wider(tmp_path / "export") == []
    # What an earlier version made is tightened when it is written to.
    (tmp_path / "logs/mine/entries.bin").chmod(0o644)
    folder.add([], LogState(b"key", tree))
    assert _wider(tmp_path / "logs") == []


def test_tightening_leaves_links_and_owners_bits(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").write_text("")
    (tmp_path / "out").chmod(0o644)
    (tmp_path / "in/link").symlink_to(tmp_path / "out")
    (tmp_path / "in/tool").write_text("")
    (tmp_path / "in/tool").chmod(0o4755)
    tighten(tmp_path / "in")
    assert (_mode(tmp_path / "in/tool"), _mode(tmp_path / "out")) == (0o700, 0o644)


# No other way to make a file

#: what makes files or folders with the umask's modes, or through links
_METHODS = {
    "write_text", "write_bytes", "mkdir", "touch", "makedirs", "mknod", "mkfifo", "copy", "copy2", "copyfile",
    "copytree", "move", "NamedTemporaryFile", "tofile", "savetxt", "savez", "copyfileobj", "FileHandler",
}  # fmt: skip
#: copy() of dictionaries, vectors and the like is everybody's
_OF_SHUTIL_ONLY = {"copy", "move"}
#: where it is done all the same: file, call and reason
_ALLOWED = {
    ("private_files.py", "open"): "streams that are open already",
    ("private_files.py", "os.open"): "this is the module",
    ("private_files.py", "os.mkdir"): "this is the module",
    ("cvm/disks.py", "os.open"): "a disk's image, which is there already; its user names it to be written to",
    ("cli/output.py", "os.open"): "reads /dev/null, in place of a closed stream",
    ("guest/named_files.py", "os.open"): "reads, and waits for no pipe",
}  # fmt: skip


def _call_name(call: ast.Call) -> str:
    function = call.func
    if isinstance(function, ast.Attribute):
        return f"{function.value.id}.{function.attr}" if isinstance(function.value, ast.Name) else f".{function.attr}"
    return function.id if isinstance(function, ast.Name) else ""


def _opens_for_writing(call: ast.Call, name: str) -> bool:
    values = (*call.args, *(word.value for word in call.keywords))
    texts = [item.value for item in values if isinstance(item, ast.Constant) and isinstance(item.value, str)]
    return name.rpartition(".")[2] == "open" and any(set(text) <= set("rwxabt+U") and set(text) & set("wxa+")
                                                     for text in texts)  # fmt: skip


def _makes_files(call: ast.Call) -> bool:
    name = _call_name(call)
    last = name.rpartition(".")[2]
    if name == "os.open" or _opens_for_writing(call, name):
        # "w" in tarfile.open(fileobj=...) writes into memory.
        return not any(word.arg == "fileobj" for word in call.keywords)
    if last in _OF_SHUTIL_ONLY:
        return name.startswith("shutil.")
    return last in _METHODS


@functools.cache
def _calls() -> list[tuple[str, ast.Call]]:
    """In all modules, with the file's name."""
    return [
        (path.relative_to(_SOURCES).as_posix(), node)
        for path in sorted(_SOURCES.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]


def test_no_module_makes_files_in_another_way() -> None:
    found = {(file, _call_name(call)): call.lineno for file, call in _calls() if _makes_files(call)}
    assert {key: line for key, line in found.items() if key not in _ALLOWED} == {}
    assert set(_ALLOWED) <= set(found), "an exception that is no longer needed"


def test_programs_that_are_started_get_a_closed_umask() -> None:
    """All but those that make no files (asked for their version) and the user's own terminal."""
    silent = {"cli/doctor.py", "guest/initramfs/contents.py"}
    found = [
        f"{file}:{call.lineno}"
        for file, call in _calls()
        if _call_name(call).startswith("subprocess.") and file not in silent
        and not any(word.arg == "umask" for word in call.keywords)
    ]  # fmt: skip
    assert found == []
