# SPDX-License-Identifier: GPL-2.0-or-later
"""How guests end and images fail: each in one clear line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.hijack import Hijack, ask_by_msr
from tests.e2e.snapshots import keep_copy, linked_cache, short_boots
from veil.cache import Cache
from veil.cvm import ConfidentialVM, Configuration
from veil.errors import VeilError
from veil.host import GuestPowerOff, GuestTerminated, TripleFault


def _one_line(error: BaseException) -> str:
    text = str(error)
    assert text
    assert "\n" not in text
    return text


def test_panic(vm: ConfidentialVM) -> None:
    with pytest.raises(VeilError) as caught:
        vm.run(["/bin/sh", "-c", "echo c > /proc/sysrq-trigger"], timeout=30)
    assert "panic" in _one_line(caught.value)


def test_power_off(vm: ConfidentialVM) -> None:
    with pytest.raises(GuestPowerOff) as caught:
        vm.run(["poweroff", "-f"], timeout=30)
    _one_line(caught.value)


def test_reset(vm: ConfidentialVM) -> None:
    with pytest.raises(VeilError) as caught:
        vm.run(["reboot", "-f"], timeout=30)
    assert "reset" in _one_line(caught.value)


def test_triple_fault(vm: ConfidentialVM) -> None:
    Hijack(vm).start("ud2")
    with pytest.raises(TripleFault) as caught:
        vm.hypervisor.run(timeout=60)
    _one_line(caught.value)


def test_termination_has_words(vm: ConfidentialVM) -> None:
    code = ask_by_msr(0x71100) + "1: jmp 1b"
    Hijack(vm).start(code)
    with pytest.raises(GuestTerminated) as caught:
        vm.hypervisor.run(timeout=60)
    assert (caught.value.reason_set, caught.value.code) == (1, 7)
    assert "SVSM" in _one_line(caught.value)


def test_too_little_memory() -> None:
    with pytest.raises(VeilError, match="too little memory") as caught, ConfidentialVM(memory="64M", fresh=True):
        pass
    _one_line(caught.value)


@pytest.mark.parametrize("content", [b"", b"MZ" + bytes(5000), b"\x7fELF" + bytes(5000)], ids=["empty", "PE", "ELF"])
def test_no_kernel(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(content)
    with pytest.raises(VeilError) as caught, ConfidentialVM(kernel=path, fresh=True):
        pass
    assert str(path) in _one_line(caught.value)


def test_a_corrupted_snapshot_is_refused(booted: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    data = bytearray(booted.read_bytes()[: 1 << 20])
    data[100] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(VeilError, match="damaged") as caught:
        ConfidentialVM.restore(damaged)
    _one_line(caught.value)


def test_a_corrupted_snapshot_in_the_cache_is_made_again(booted: Path, tmp_path: Path) -> None:
    said: list[str] = []
    cache = linked_cache(tmp_path / "cache")
    path = keep_copy(booted, Configuration.make(), cache)
    with ConfidentialVM(cache=cache) as first:
        assert first.boot_seconds is None
    with open(path, "r+b") as stream:
        stream.seek(60)
        stream.write(b"garbage")
    with short_boots(booted), ConfidentialVM(progress=said.append, cache=cache) as second:
        assert second.boot_seconds is not None
        assert second.run(["true"]).exit_status == 0
    assert any("made again" in line for line in said)
    with ConfidentialVM(cache=cache) as third:
        assert third.boot_seconds is None


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    blocker = tmp_path / "veil"
    blocker.write_text("a file where a directory should be")
    with pytest.raises(VeilError) as caught, ConfidentialVM(cache=Cache(blocker), fresh=True):
        pass
    _one_line(caught.value)


def test_restoring_twice_gives_two_guests(resume: Callable[[], ConfidentialVM]) -> None:
    first, second = resume(), resume()
    first.run(["touch", "/tmp/only-here"])
    assert second.run(["test", "-e", "/tmp/only-here"]).exit_status == 1
