# SPDX-License-Identifier: GPL-2.0-or-later
"""A booted guest's snapshot after somebody else had it: no code of his runs, and what is nonsense ends in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.e2e.snapshots import RunSnapshots
from veil.cvm import ConfidentialVM, Configuration
from veil.cvm.plain_values import from_plain, to_plain
from veil.errors import VeilError
from veil.host import Hypervisor
from veil.host.saved_state import require_like
from veil.snp.snapshot_file import read_snapshot, write_snapshot


@pytest.fixture(scope="module")
def booted(snapshots: RunSnapshots) -> Path:
    """A small one, because all of its memory is copied for each change (test_attestation_and_impostors.py boots it)."""
    return snapshots.of(Configuration.make("256M"))


def _change(old: Path, new: Path, change: Callable[[memoryview, dict[str, bytes]], None]) -> Path:
    """A copy with right checksums."""
    snapshot = read_snapshot(old)
    memory, sections = snapshot.map_memory(), dict(snapshot.sections)
    change(memory.buf, sections)
    write_snapshot(new, memory=memory.buf, sections=sections)
    return new


def _refused(path: Path, words: str) -> None:
    with pytest.raises(VeilError, match=words) as caught:
        ConfidentialVM.restore(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("module", ["veil.monitor.veilmon", "veil.services.protected"])
def test_changed_sources_do_not_run(booted: Path, tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evil = b"open('mark', 'w')"

    def change(memory: memoryview, sections: dict[str, bytes]) -> None:
        name = module.replace(".", "/").encode() + b".py\0"
        start = bytes(memory).index(name)
        at = bytes(memory[start : start + 8192]).index(b"from __future__ import annotations\n") + start
        memory[at : at + 35] = evil.ljust(34, b"#") + b"\n"

    changed = _change(booted, tmp_path / "changed", change)
    _refused(changed, f"'{module}' is not the one that is installed here")
    assert not (tmp_path / "mark").exists()


def test_another_entry_does_not_run(booted: Path, tmp_path: Path) -> None:
    def change(memory: memoryview, sections: dict[str, bytes]) -> None:
        at = bytes(memory).index(b"veil.monitor:VeilMon\0")
        memory[at : at + 20] = b"veil.cli:main".ljust(20, b"\0")

    _refused(_change(booted, tmp_path / "changed", change), "may not be resumed here")


def test_a_copy_with_nothing_changed_goes_on(booted: Path, tmp_path: Path) -> None:
    with ConfidentialVM.restore(_change(booted, tmp_path / "copy", lambda *_: None)) as vm:
        assert vm.run(["echo", "well"]).stdout == b"well\n"


_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 66), 1 << 66), st.integers(-2, 300), st.text(max_size=3),
    st.binary(max_size=9), st.sampled_from([[], {}, [0], [[[]]], {"x": 1}]),
)  # fmt: skip


def _places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way, *(place for key, item in inner for place in _places(item, (*way, key)))]


def _put(value: Any, way: tuple[Any, ...], new: Any) -> Any:
    if not way:
        return new
    if isinstance(value, dict):
        return {key: _put(item, way[1:], new) if key == way[0] else item for key, item in value.items()}
    return [_put(item, way[1:], new) if key == way[0] else item for key, item in enumerate(value)]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_the_hosts_or_the_programs_state(booted: Path, tmp_path: Path, data: st.DataObject) -> None:
    """The guest is not waited for: what it does with devices whose state is odd is its own affair."""
    sections = read_snapshot(booted).sections
    name = data.draw(st.sampled_from(["host", "host", *(name for name in sections if name.startswith("program:"))]))
    state = json.loads(sections[name])
    if name == "host":
        state = from_plain(state)
    new = _put(state, data.draw(st.sampled_from(_places(state))), data.draw(_VALUES))

    def change(memory: memoryview, sections: dict[str, bytes]) -> None:
        sections[name] = json.dumps(to_plain(new) if name == "host" else _plain(new)).encode()

    said = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfidentialVM, "connect", lambda self: self.hypervisor.run(timeout=0.05))
        try:
            ConfidentialVM.restore(_change(booted, tmp_path / "changed", change)).close()
        except VeilError as error:
            said = str(error)
    assert "\n" not in said


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def test_the_hosts_state_is_of_our_types(booted: Path) -> None:
    state = from_plain(json.loads(read_snapshot(booted).sections["host"]))
    require_like(state, state)
    for place in _places(state):
        if place:
            with pytest.raises(VeilError, match="snapshot: host"):
                require_like(_put(state, place, 1.5), state)
    assert Hypervisor.load.__doc__
