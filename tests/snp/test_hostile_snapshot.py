# SPDX-License-Identifier: GPL-2.0-or-later
"""A snapshot file is somebody else's word: it runs no code but what is installed, and is refused in one line."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.examples import examples
from veil.formats.page_sizes import PAGE_SIZE
from veil.snp import snapshot_file as format_module
from veil.snp.errors import SnapshotError
from veil.snp.hosted import hosted_header, load_installed, pack_sources
from veil.snp.layouts import Vmcb, Vmsa
from veil.snp.machine import Machine
from veil.snp.snapshot_file import read_snapshot, write_snapshot

HEADER, VMSA, ARCHIVE = 0x10000, 0x11000, 0x12000
ENTRY, PACKAGES = "hosted_sample:Program", ("hosted_sample",)
_SOURCE = b"""
import os

class Program:
    def __init__(self):
        self.count = 0

    def run(self, cpu):
        while True:
            self.count += 1
            yield

    resume = run

    def save(self):
        return b"%d" % self.count

    def restore(self, data):
        self.count = int(data)

def other():
    raise SystemExit("it ran")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed program."""
    place = tmp_path / "installed" / "hosted_sample"
    place.mkdir(parents=True)
    (place / "__init__.py").write_bytes(_SOURCE)
    monkeypatch.syspath_prepend(str(place.parent))
    yield place / "__init__.py"
    sys.modules.pop("hosted_sample", None)


@pytest.fixture
def snapshot(package: Path, tmp_path: Path) -> Path:
    """Of a machine on which it ran twice."""
    with Machine(2 << 20, hosted=True) as machine:
        _put_program(machine)
        for _ in range(2):
            machine.vmrun(_vmcb(machine))
        machine.save(tmp_path / "snapshot")
    return tmp_path / "snapshot"


def _put_program(machine: Machine) -> None:
    archive = pack_sources(PACKAGES)
    host, top = machine.host_view(), machine.view(vmpl=0)
    host.rmpupdate(0, assigned=True, count=machine.memory.pages)
    for gpa in range(0, machine.memory_size, PAGE_SIZE):
        top.pvalidate(gpa)
    top.write(HEADER, hosted_header(ENTRY, archive=(ARCHIVE, len(archive)), parameters=(HEADER, 8)))
    top.write(ARCHIVE, archive)
    top.write(VMSA, bytes(Vmsa(vmpl=0, sev_features=1, rip=HEADER, efer=1 << 12)))
    top.rmpadjust(VMSA, vmpl=1, permissions=0, vmsa=True)


def _vmcb(machine: Machine) -> Vmcb:
    vmcb = machine.new_vmcb()
    vmcb.vmsa_pa = VMSA
    return vmcb


def _resume(path: Path, programs: dict[str, tuple[str, ...]] | None = None) -> int:
    """How often its program has run after one more VMRUN."""
    machine, _ = Machine.restore(path, programs={ENTRY: PACKAGES} if programs is None else programs)
    with machine:
        vmcb = _vmcb(machine)
        machine.attach_vmcb(vmcb)
        machine.vmrun(vmcb)
        program = machine.hosted_program(VMSA)
        return int(program.save()) if program is not None else 0


def _change(
    path: Path, *, memory: dict[int, bytes] | None = None, sections: dict[str, bytes | None] | None = None
) -> None:
    """Another file with right checksums."""
    old = read_snapshot(path)
    content = old.map_memory()
    for gpa, data in (memory or {}).items():
        content.buf[gpa : gpa + len(data)] = data
    new = old.sections | (sections or {})
    write_snapshot(path, memory=content.buf, sections={name: data for name, data in new.items() if data is not None})


def test_the_installed_program_goes_on(snapshot: Path) -> None:
    assert _resume(snapshot) == 3


def test_a_program_that_does_not_run_is_not_imported(snapshot: Path, tmp_path: Path) -> None:
    machine, _ = Machine.restore(snapshot, programs={ENTRY: PACKAGES})
    with machine:
        machine.attach_vmcb(_vmcb(machine))
        sys.modules.pop("hosted_sample", None)
        machine.save(tmp_path / "again")
        assert "hosted_sample" not in sys.modules
    assert _resume(tmp_path / "again") == 3


def test_changed_sources_do_not_run(snapshot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = bytes(read_snapshot(snapshot).map_memory().buf).index(b"import os")
    _change(snapshot, memory={at: b"print(1)#"})
    with pytest.raises(SnapshotError, match="'hosted_sample' is not the one that is installed here") as caught:
        _resume(snapshot)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_an_older_versions_snapshot_is_refused(snapshot: Path, package: Path) -> None:
    package.write_bytes(_SOURCE + b"# newer\n")
    with pytest.raises(SnapshotError, match="another version of Veil"):
        _resume(snapshot)


@pytest.mark.parametrize("entry", ["hosted_sample:other", "os:getcwd", "antigravity:fly_away", "", "hosted_sample"])
def test_other_entries_do_not_run(snapshot: Path, entry: str) -> None:
    archive = pack_sources(PACKAGES)
    _change(snapshot, memory={HEADER: hosted_header(entry, archive=(ARCHIVE, len(archive)), parameters=(HEADER, 8))})
    with pytest.raises(SnapshotError, match="may not be resumed here"):
        _resume(snapshot)


def test_nobody_is_resumed_who_was_not_named(snapshot: Path) -> None:
    with pytest.raises(SnapshotError, match="may not be resumed"):
        _resume(snapshot, {})


def test_an_archive_has_no_module_too_many_or_too_few(package: Path) -> None:
    (package.parent / "more.py").write_bytes(b"pass\n")
    both = pack_sources(PACKAGES)
    assert load_installed(both, ENTRY, {ENTRY: PACKAGES})
    (package.parent / "more.py").unlink()
    with pytest.raises(SnapshotError, match=r"'hosted_sample\.more'"):
        load_installed(both, ENTRY, {ENTRY: PACKAGES})
    one = pack_sources(PACKAGES)
    (package.parent / "more.py").write_bytes(b"pass\n")
    with pytest.raises(SnapshotError, match=r"'hosted_sample\.more'"):
        load_installed(one, ENTRY, {ENTRY: PACKAGES})
    with pytest.raises(SnapshotError, match="damaged"):
        load_installed(b"no tar", ENTRY, {ENTRY: PACKAGES})


@pytest.mark.parametrize(
    "header",
    [
        hosted_header(ENTRY, archive=(1 << 40, 1 << 60), parameters=(0, 0)),
        hosted_header(ENTRY, archive=(ARCHIVE, (1 << 64) - 1), parameters=(0, 0)),
        hosted_header(ENTRY, archive=(ARCHIVE, 0), parameters=(0, 0)),
        b"VEILHOST" + b"\xff" * 200,
        bytes(200),
    ],
)
def test_headers_that_lead_nowhere(snapshot: Path, header: bytes) -> None:
    _change(snapshot, memory={HEADER: header})
    with pytest.raises(SnapshotError):
        _resume(snapshot)


def test_a_state_that_shows_itself_as_nonsense_later(snapshot: Path) -> None:
    _change(snapshot, sections={f"program:{HEADER}": b"no number"})
    with pytest.raises(SnapshotError, match="cannot go on from its state"):
        _resume(snapshot)


def test_memory_is_as_large_as_the_machine(snapshot: Path) -> None:
    """The engine believes the size: one that is too large would let the guest read this process' memory."""
    state = json.loads(read_snapshot(snapshot).sections["machine"])
    for size in (4 << 20, 1 << 62, 0, -(2 << 20), 4096, "2097152", 2097152.0, None):
        state["memory_size"] = size
        _change(snapshot, sections={"machine": json.dumps(state).encode()})
        with pytest.raises(SnapshotError, match="not a snapshot"):
            _resume(snapshot)


# Any values at all

_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from([[], {}, {"hex": "zz"}, {"hex": 5}, {"hex": ""}, [[[]]], "9" * 5000, [0] * 9, {"hex": "00" * 32}]),
)


def _places(value: object, way: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    inner: list[tuple[object, object]] = list(value.items()) if isinstance(value, dict) else []
    if isinstance(value, list):
        inner = list(enumerate(value))
    return [way, *(place for key, item in inner for place in _places(item, (*way, key)))]


def _put(value: object, way: tuple[object, ...], new: object) -> object:
    if not way:
        return new
    if isinstance(value, dict):
        return {key: _put(item, way[1:], new) if key == way[0] else item for key, item in value.items()}
    assert isinstance(value, list)
    return [_put(item, way[1:], new) if key == way[0] else item for key, item in enumerate(value)]


def _refused_or_resumed(path: Path) -> None:
    said = ""
    try:
        _resume(path)
    except SnapshotError as error:
        said = str(error)
    assert "\n" not in said


@settings(max_examples=examples(120), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_the_machines_state(snapshot: Path, tmp_path: Path, data: st.DataObject) -> None:
    original = read_snapshot(snapshot)
    state = json.loads(original.sections["machine"])
    place = data.draw(st.sampled_from(_places(state)))
    changed = json.dumps(_put(state, place, data.draw(_VALUES))).encode()
    copy = tmp_path / "copy"
    write_snapshot(copy, memory=original.map_memory().buf, sections={**original.sections, "machine": changed})
    _refused_or_resumed(copy)


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_section_may_lack_or_be_anything(snapshot: Path, tmp_path: Path, data: st.DataObject) -> None:
    original = read_snapshot(snapshot)
    name = data.draw(st.sampled_from(sorted(original.sections)))
    new = data.draw(st.one_of(st.none(), st.binary(max_size=50), st.just(original.sections[name][:-1])))
    sections = {key: item for key, item in {**original.sections, name: new}.items() if item is not None}
    copy = tmp_path / "copy"
    write_snapshot(copy, memory=original.map_memory().buf, sections=sections)
    _refused_or_resumed(copy)


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_the_index(snapshot: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = snapshot.read_bytes()
    header = format_module._HEADER
    magic, version, length, _ = header.unpack_from(content)
    index = json.loads(content[header.size : header.size + length])
    place = data.draw(st.sampled_from(_places(index)))
    text = json.dumps(_put(index, place, data.draw(_VALUES))).encode()
    start = header.pack(magic, version, len(text), hashlib.sha256(text).digest()) + text
    copy = tmp_path / "copy"
    copy.write_bytes(start + content[header.size + length :])
    _refused_or_resumed(copy)


def test_sections_do_not_overlap(tmp_path: Path) -> None:
    """A small file that says of thousands of sections that each is all of it would be read thousands of times."""
    path = tmp_path / "snapshot"
    with Machine(2 << 20) as machine:
        write_snapshot(path, memory=machine.memory.buf, sections={"a": b"x" * 1000})
    content = path.read_bytes()
    header = format_module._HEADER
    magic, version, length, _ = header.unpack_from(content)
    index = json.loads(content[header.size : header.size + length])
    index["sections"] |= {f"s{number}": index["sections"]["a"] for number in range(50)}
    text = json.dumps(index).encode()
    base = -(-(header.size + len(text) + 1000) // (2 << 20)) * (2 << 20)
    start = header.pack(magic, version, len(text), hashlib.sha256(text).digest()) + text + b"x" * 1000
    path.write_bytes(start.ljust(base, b"\0"))
    os.truncate(path, base + index["memory_size"])
    with pytest.raises(SnapshotError, match="not where it should be"):
        read_snapshot(path)


def test_lengths_that_no_file_has(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    path.write_bytes(struct.pack("<8sIQ32s", b"VEILSNAP", 1, (1 << 64) - 1, hashlib.sha256(b"").digest()))
    with pytest.raises(SnapshotError, match="damaged"):
        read_snapshot(path)


def test_a_program_that_never_ran_is_not_taken_from_memory(snapshot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that says that nobody runs the VMSA: it would be decided at its first VMRUN, as in a fresh machine."""
    content = read_snapshot(snapshot)
    at = bytes(content.map_memory().buf).index(b"import os")
    state = json.loads(content.sections["machine"])
    state |= {"hosted": {}, "machine_code": []}
    programs = {name: None for name in content.sections if name.startswith("program:")}
    _change(snapshot, memory={at: b"print(1)#"}, sections={"machine": json.dumps(state).encode(), **programs})
    with pytest.raises(SnapshotError, match="'hosted_sample' is not the one that is installed here"):
        _resume(snapshot)
    assert capsys.readouterr().out == ""
    # On a machine that takes its memory for an image of its own making, it runs.
    machine, _ = Machine.restore(snapshot)
    with machine:
        machine._allowed = None
        machine.vmrun(_vmcb(machine))
    assert capsys.readouterr().out == "1\n"


@pytest.mark.usefixtures("package")
def test_a_machine_without_hosted_code_runs_none() -> None:
    """Whatever lies at VMPL 0: the image was not the caller's own, and is not trusted."""
    with Machine(2 << 20) as machine:
        _put_program(machine)
        machine.vmrun(_vmcb(machine))
        assert machine.hosted_program(VMSA) is None
