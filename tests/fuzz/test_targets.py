# SPDX-License-Identifier: GPL-2.0-or-later
"""Every fuzzing target for a moment: hostile inputs end in one of the errors that are for them, invariants hold."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from fuzz.mutations import mutations
from fuzz.target import Target, examine
from fuzz.targets import TARGETS
from fuzz.world import genuine_machines, software_machine
from tests.examples import examples
from veil.formats.enclave_calls import EnclaveCall
from veil.formats.errors import FormatError
from veil.remote.attestation.verify import verify_report
from veil.services.enc import service
from veil.services.enc.enclave import Enclave
from veil.services.enc.paging import AwayPages
from veil.services.kci import Explanation
from veil.services.kci.modules.elf import ModuleElf

_ROOT = Path(__file__).resolve().parents[2]
_MUTATIONS = examples(500)


_each_target = pytest.mark.parametrize(
    "target",
    [
        pytest.param(target, id=name, marks=[pytest.mark.soak] if target.slow else [])
        for name, target in TARGETS.items()
    ],
)


@_each_target
def test_seeds_are_accepted(target: Target) -> None:
    seeds = list(target.seeds())
    assert seeds
    for seed in seeds:
        assert len(seed) <= target.max_bytes
        target.run(seed)


@_each_target
def test_mutations(target: Target) -> None:
    count = _MUTATIONS // 10 if target.slow else _MUTATIONS
    found = {data: finding for data in mutations(target, count) if (finding := examine(target, data)) is not None}
    assert not found


def test_what_code_integrity_must_not_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target finds a service that does not compare, and one that loads wrongly."""
    target = TARGETS["code-integrity"]
    plain, _, flipped, *_ = target.seeds()
    monkeypatch.setattr(Explanation, "sound", property(lambda self: True))
    with pytest.raises(AssertionError, match="changed code is accepted"):
        target.run(flipped)
    monkeypatch.setattr("veil.services.kci.modules.prepared.sort_tables", _forget_text)
    with pytest.raises(AssertionError, match="TEXT is loaded otherwise"):
        target.run(plain)


def _forget_text(elf: ModuleElf, contents: Mapping[int, bytes]) -> dict[int, bytes]:
    text = elf.section(".text")
    assert text is not None
    return {**contents, text.index: bytes(len(contents[text.index]))}


def test_what_enclaves_must_not_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target finds a service that gives away what is not encrypted, and one that does not clear pages."""
    target = TARGETS["enclave-service"]
    paged, *_ = target.seeds()
    with monkeypatch.context() as patch:
        patch.setattr(AwayPages, "seal", lambda away, va, content: content)
        with pytest.raises(AssertionError, match="not encrypted"):
            target.run(paged)
    monkeypatch.setattr("veil.services.enc.mailbox._ZEROS", b"")
    with pytest.raises(AssertionError, match="another's content"):
        target.run(paged)


def test_what_no_enclave_may_be_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target finds a service that does not compare what it has measured."""
    target = TARGETS["enclave-service"]
    honest = Enclave._finish_record
    monkeypatch.setattr(Enclave, "_finish_record", lambda enclave, digest: honest(enclave, enclave._hash.digest()))
    made = [1, 0, 2, 0, 0, 1, 3, 0, 0, 0, 1, 4, 0, 1, 0, 2, 1, 1, 5, 0]
    with pytest.raises(AssertionError, match="not measured"):
        target.run(bytes(made))


@pytest.mark.soak
def test_what_no_process_may_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target finds a service that keeps pages of which it says that the kernel has them again."""
    target = TARGETS["enclave-ioctls"]
    lives, *_ = target.seeds()
    monkeypatch.setitem(service._CALLS, EnclaveCall.DESTROY, lambda *_: bytes(8))
    with pytest.raises(AssertionError, match="VMPL 3 has no permission"):
        target.run(lives)
    monkeypatch.undo()
    target.run(lives)


def test_mutations_are_the_same_each_time() -> None:
    target = TARGETS["manifest"]
    assert list(mutations(target, 50)) == list(mutations(target, 50))


def test_machines_are_what_verification_is_for() -> None:
    """Otherwise no mutation of their reports could be a forgery."""
    for machine in (software_machine(), *genuine_machines()):
        for report in machine.reports:
            verify_report(report, machine.chain, roots=machine.roots).raise_for_failure()


def _panic(data: bytes) -> None:
    raise FormatError("bad") if data == b"bad" else KeyError(data)


def test_findings() -> None:
    target = Target("broken", _panic, lambda: [b""])
    assert examine(target, b"bad") is None
    finding = examine(target, b"other")
    assert finding is not None
    assert finding.what == "KeyError: b'other'"
    assert finding.place.startswith("KeyError at tests/fuzz/test_targets.py:")


def test_slow_inputs_are_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.5])
    monkeypatch.setattr("fuzz.target.time.process_time", lambda: next(times))
    finding = examine(Target("slow", lambda data: None, lambda: [b""]), b"x")
    assert finding is not None
    assert finding.what == "1 bytes take 1.5 s"


def test_with_coverage(tmp_path: Path) -> None:
    """The whole of `make fuzz`, for the targets that need no keys."""
    why = "atheris cannot be imported (pip install -e '.[fuzz]')"
    pytest.importorskip("atheris", reason=why, exc_type=ImportError)
    done = subprocess.run(
        [sys.executable, "-m", "fuzz", "--seconds", "2", "--target", "manifest", "--target", "frames"],
        cwd=_ROOT, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)}, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert all(re.match(r"(manifest|frames): \d+ s, ", line) for line in done.stderr.splitlines()), done.stderr
    for line, name in zip(done.stdout.splitlines(), ("manifest", "frames"), strict=True):
        assert line.startswith(f"{name}: ")
        assert line.endswith(" 0 findings")
        assert "?" not in line
    assert list((tmp_path / "veil" / "fuzz" / "corpus" / "manifest").iterdir())
