# SPDX-License-Identifier: GPL-2.0-or-later
"""The service that docs/writing-a-service.md shows, as it stands there."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from veil.monitor import Option
from veil.monitor.requests import ResultCode
from veil.snp import RmpViolation
from veil.snp.hosted import HostedCpu, HostedHeader, hosted_header, load_program, pack_sources

from .bench import FREE, MONITOR, RAM, SERVICES, Bench

_GUIDE = Path(__file__).parents[2] / "docs" / "writing-a-service.md"
_ADD, _READ = 0, 1


def _sources() -> list[str]:
    return re.findall(r"```python\n(.*?)```", _GUIDE.read_text(), re.DOTALL)


@pytest.fixture
def notary() -> Any:
    module = ModuleType("notary")
    exec(compile(_sources()[0], str(_GUIDE), "exec"), module.__dict__)
    return module


@pytest.fixture
def bench(notary: Any) -> Bench:
    return Bench(notary.NotaryMon).boot()


def _add(bench: Bench, message: bytes) -> int:
    bench.kernel.write(FREE, message)
    answer = bench.call(16, _ADD, FREE, len(message))
    assert answer.rax == ResultCode.SUCCESS
    return answer.rcx


def _state(bench: Bench) -> tuple[int, bytes]:
    assert bench.call(16, _READ, FREE).rax == ResultCode.SUCCESS
    return bench.kernel.read_u64(FREE), bench.kernel.read(FREE + 8, 32)


def _chain(*messages: bytes) -> bytes:
    value = bytes(32)
    for message in messages:
        value = hashlib.sha256(value + hashlib.sha256(message).digest()).digest()
    return value


def test_the_chain_grows(bench: Bench) -> None:
    assert [_add(bench, b"first"), _add(bench, b"second")] == [1, 2]
    assert _state(bench) == (2, _chain(b"first", b"second"))
    assert bench.call(0, 6, 16 << 32 | 1).rcx == 1 << 32 | 1


def test_the_second_example(notary: Any, bench: Bench) -> None:
    names = {**vars(notary), "Bench": Bench, "FREE": FREE}
    exec(compile(_sources()[1], str(_GUIDE), "exec"), names)


@pytest.mark.parametrize("length", [0, 4097, 1 << 63])
def test_bad_lengths(bench: Bench, length: int) -> None:
    assert bench.call(16, _ADD, FREE, length).rax == ResultCode.INVALID_PARAMETER
    assert _state(bench)[0] == 0


@pytest.mark.parametrize("gpa", [SERVICES, MONITOR, SERVICES - 1, RAM, 1 << 63])
@pytest.mark.parametrize("call", [_ADD, _READ])
def test_addresses_that_are_not_the_callers(bench: Bench, call: int, gpa: int) -> None:
    before = bench.rmp.dump(), bytes(bench.memory.buf[MONITOR : MONITOR + 4096])
    assert bench.call(16, call, gpa, 8).rax == ResultCode.INVALID_ADDRESS
    assert (bench.rmp.dump(), bytes(bench.memory.buf[MONITOR : MONITOR + 4096])) == before
    assert _state(bench)[0] == 0


def test_unknown_calls(bench: Bench) -> None:
    assert bench.call(16, 2).rax == ResultCode.UNSUPPORTED_CALL


def test_the_kernel_cannot_rewrite_the_chain(notary: Any, bench: Bench) -> None:
    _add(bench, b"evidence")
    with pytest.raises(RmpViolation):
        bench.kernel.write(SERVICES, bytes(40))
    assert _state(bench) == (1, _chain(b"evidence"))

    open_to_all = Bench(notary.NotaryMon, options=Option.UNPROTECTED).boot()
    _add(open_to_all, b"evidence")
    open_to_all.kernel.write(SERVICES, bytes(40))
    assert _state(open_to_all) == (0, bytes(32))


def test_a_snapshot_keeps_it(notary: Any, bench: Bench) -> None:
    _add(bench, b"first")
    again = notary.NotaryMon()
    again.restore(bench.monitor.save())
    vcpu = bench.vcpus[0]
    cpu = HostedCpu(bench.view(0), vcpu.vmsas[0], 0, HostedHeader(), vcpu.vmcb)
    bench.monitor, vcpu.steps = again, again.resume(cpu)
    assert _add(bench, b"second") == 2
    assert _state(bench) == (2, _chain(b"first", b"second"))


def test_in_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry and packages as the guide gives them; what runs comes out of the archive."""
    package = tmp_path / "notary"
    package.mkdir()
    (package / "__init__.py").write_text(_sources()[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    entry, archive = "notary:NotaryMon", pack_sources(("notary", "veil.monitor"))
    assert entry.encode() in hosted_header(entry, archive=(0x1000, len(archive)), parameters=(0, 0))
    try:
        program = load_program(archive, entry)
        assert [service.name for service in program.services] == ["notary"]  # type: ignore[attr-defined]
    finally:
        sys.modules.pop("notary", None)
