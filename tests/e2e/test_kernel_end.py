# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel that was taken over ends itself, in each way that it has: what its log holds is fetched all the same."""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections.abc import Callable

import pytest

from tests.e2e.hijack import Hijack, ask_by_msr
from tests.e2e.log_guest import log_reader
from veil.cli import main
from veil.cvm import ConfidentialVM
from veil.errors import VeilError
from veil.formats.ghcb import NaeEvent
from veil.host import ChannelListener, HostError, TripleFault
from veil.remote import SocketTransport
from veil.remote.log.analysis import LogAnalysis

Resume = Callable[[], ConfidentialVM]
_NS = 1_000_000_000


def _by_msr(value: int) -> str:
    return f"""
        {ask_by_msr(value)}
    1:  pause
        jmp 1b
    """


def _take_over(code: str) -> Callable[[ConfidentialVM], None]:
    return lambda vm: Hijack(vm).start(code)


def _terminate_by_page(vm: ConfidentialVM) -> None:
    ghcb = vm.hypervisor.vcpus[0].contexts[3].ghcb
    assert ghcb is not None
    kernel = Hijack(vm)
    page = bytearray(4096)
    struct.pack_into("<3Q", page, 0x390, NaeEvent.TERMINATE, 0, 0)
    page[0x3F0:0x400] = (7 << 0x390 // 8).to_bytes(16, "little")
    struct.pack_into("<H", page, 0xFFA, 2)
    kernel.kernel.write(ghcb, bytes(page), private=False)
    kernel.start(_by_msr(ghcb))


def _in_the_guest(command: str) -> Callable[[ConfidentialVM], None]:
    def end(vm: ConfidentialVM) -> None:
        vm.run(["/bin/sh", "-c", f"(sleep 0.2; {command}) </dev/null >/dev/null 2>&1 &"])

    return end


ENDS: dict[str, tuple[Callable[[ConfidentialVM], None], str]] = {
    "sysrq: power off": (_in_the_guest("echo o > /proc/sysrq-trigger"), "switched its machine off"),
    "sysrq: reset": (_in_the_guest("echo b > /proc/sysrq-trigger"), "reset its machine"),
    "panic, and the reset after it": (_in_the_guest("echo c > /proc/sysrq-trigger"), "reset its machine"),
    "ACPI: power off": (_in_the_guest("poweroff -f"), "switched its machine off"),
    "TERMINATE, MSR protocol": (_take_over(_by_msr(0x100)), "terminated itself"),
    "TERMINATE, GHCB page": (_terminate_by_page, "terminated itself"),
    "VMGEXIT without a GHCB": (_take_over(_by_msr(1 << 45)), "not a page of guest memory"),
    "AP reset hold": (_take_over(_by_msr(0x006)), "no VCPU can ever run again"),
    "halt for good": (_take_over("1: hlt\njmp 1b"), "no VCPU can ever run again"),
    "triple fault": (_take_over("ud2"), "triple fault"),
}


def _tell(told: list[str]) -> Callable[[HostError], None]:
    return lambda error: told.append(str(error))


@pytest.mark.parametrize("name", ENDS)
def test_all_is_fetched_after_it(resume: Resume, name: str) -> None:
    vm = resume()
    before = log_reader(vm).head().size
    told: list[str] = []
    vm.hypervisor.kernel_end.is_outlived = True
    vm.hypervisor.kernel_end.on_end = _tell(told)
    end, words = ENDS[name]
    end(vm)
    vm.hypervisor.run(until=lambda: bool(told), timeout=60)
    (told_words,) = told
    assert words in told_words
    # Somebody new attests what is left, and reads all of it.
    reader = log_reader(vm, timeout=60.0)
    entries = list(reader.fetch())
    assert len(entries) >= before > 0
    assert all(3 not in vcpu.contexts for vcpu in vm.hypervisor.vcpus)


@pytest.mark.parametrize("name", ["sysrq: power off", "TERMINATE, MSR protocol", "triple fault"])
def test_nothing_is_when_the_machine_ends_with_it(resume: Resume, name: str) -> None:
    """The counter-test: the switch is off, as it is for commands that run in the guest."""
    vm = resume()
    end, words = ENDS[name]
    end(vm)
    with pytest.raises(VeilError, match=words):
        vm.serve(end_with_kernel=True)


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_the_command_says_so_and_runs_on(
    resume: Resume, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """veil serve, on a guest that was booted before: an owner fetches the log after the kernel's end."""
    vm = resume()
    done: list[int | BaseException] = []

    def user(address: tuple[str, int]) -> None:
        try:
            while vm.hypervisor.kernel_end.error is None:
                time.sleep(0.05)
            reader = log_reader(vm, transport=SocketTransport.connect(*address, timeout=60))
            done.append(len(list(reader.fetch())))
        except BaseException as error:
            done.append(error)
        finally:
            vm.hypervisor.post(_interrupt)

    listen = vm.listen

    def listens(host: str, port: int) -> ChannelListener:
        listener = listen(host, port)
        threading.Thread(target=user, args=[listener.address]).start()
        return listener

    Hijack(vm).start("ud2")
    monkeypatch.setattr(vm, "listen", listens)
    monkeypatch.setattr("veil.cvm.ConfidentialVM", lambda *_, **__: contextlib.nullcontext(vm))
    monkeypatch.setattr("sys.argv", ["veil", "serve"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 125
    (entries,) = done
    assert isinstance(entries, int), entries
    assert entries > 0
    said = capfd.readouterr()
    assert "users are carried to VeilMon from 127.0.0.1:" in said.out
    told, last = said.err.splitlines()[-2:]
    assert told.startswith("veil: the CVM's kernel ended (")
    assert "can still be fetched" in told
    assert "triple fault" in last


def test_the_command_ends_with_the_kernel_if_told_to(
    resume: Resume, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    vm = resume()
    Hijack(vm).start("ud2")
    monkeypatch.setattr("veil.cvm.ConfidentialVM", lambda *_, **__: contextlib.nullcontext(vm))
    monkeypatch.setattr("sys.argv", ["veil", "serve", "--end-with-kernel"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 125
    said = capfd.readouterr().err
    assert "triple fault" in said
    assert "can still be fetched" not in said


def test_over_tcp_and_the_silence_is_told(resume: Resume) -> None:
    vm = resume()
    ended = threading.Event()
    result: list[LogAnalysis | BaseException] = []

    def user() -> None:
        try:
            assert ended.wait(60)
            reader = log_reader(vm, transport=SocketTransport.connect(*listener.address, timeout=60))
            analysis = LogAnalysis(silence_ns=2 * _NS)
            while (head := reader.head()).time_ns - head.last_ns < 3 * _NS:
                time.sleep(0.1)
            for entry in reader.fetch(head):
                analysis.feed(entry)
            analysis.silence(head.time_ns, head)
            result.append(analysis)
        except BaseException as error:
            result.append(error)
        finally:
            vm.hypervisor.post(_interrupt)

    vm.wait(3)  # heartbeats
    Hijack(vm).start("ud2")
    listener = vm.listen()
    thread = threading.Thread(target=user)
    try:
        thread.start()
        with pytest.raises(TripleFault):  # although Ctrl-C ended it
            vm.serve(on_kernel_end=lambda error: ended.set())
        thread.join()
    finally:
        listener.close()
    (analysis,) = result
    assert isinstance(analysis, LogAnalysis), analysis
    assert any("no sign of life" in item.words for item in analysis.findings.items)
