# SPDX-License-Identifier: GPL-2.0-or-later
"""The channel's carriers turn hostile while a user talks: the host's device, and the kernel, which can write the shared
pages, too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from tests.e2e.hijack import RESULT, SHARED, Hijack
from tests.e2e.log_guest import trust_in
from veil.cvm import ConfidentialVM
from veil.formats.channel import DOORBELL_PORT, DOORBELL_SPOILT
from veil.formats.ghcb import NaeEvent
from veil.formats.services_manifest import CHANNEL_SERVICE
from veil.remote import ChannelClient, ChannelClosed, attest
from veil.snp import ExitCode

Resume = Callable[[], ConfidentialVM]

PING = 0


def ping(client: ChannelClient, body: bytes = b"still there?") -> None:
    assert client.request(CHANNEL_SERVICE, PING, body) == body


def pings(client: ChannelClient) -> None:
    for _ in range(5):
        ping(client)


def area(vm: ConfidentialVM) -> tuple[int, int]:
    found = vm.platform.channel._area
    assert found is not None
    return found.gpa, found.size


def comes_back(vm: ConfidentialVM) -> None:
    """A new connection, attested, with the kernel still in the attacker's hands."""
    for _ in range(4):
        try:
            with ChannelClient(vm.user_transport(timeout=2.0)) as client:
                attest(client, trust_in(vm)).raise_for_failure()
            return
        except ChannelClosed:
            continue
    pytest.fail("the channel did not come back")


def finished(vm: ConfidentialVM, kernel: Hijack, result: int) -> None:
    """The kernel's code has come to its end: users' turns may be over before."""
    vm.hypervisor.run(until=lambda: kernel.result() == result, timeout=20)
    assert kernel.result() == result


def test_kernel_overwrites_the_rings(resume: Resume) -> None:
    vm = resume()
    kernel = Hijack(vm)
    gpa, size = area(vm)
    client = ChannelClient(vm.user_transport(timeout=2.0))
    ping(client)
    # Private, these pages are nobody's.
    assert kernel.run(f"mov qword ptr [{gpa}], 0x666\nhlt") == ExitCode.NPF
    fill = f"mov rdi, {SHARED + gpa}\nmov ecx, {size}\nmov al, 0xff\nrep stosb"
    kernel.start(f"{fill}\nmov qword ptr [{RESULT}], 1\njmp $")
    with pytest.raises(ChannelClosed):
        pings(client)
    finished(vm, kernel, 1)
    comes_back(vm)


def test_kernel_plays_old_traffic_again(resume: Resume) -> None:
    """It copies the ring to VeilMon while a session runs, and puts the copy back later."""
    vm = resume()
    gpa, size = area(vm)
    client = ChannelClient(vm.user_transport(timeout=2.0))
    ping(client, b"x" * 1000)
    kernel = Hijack(vm)
    copy = 0x9000000
    kernel.start(
        f"mov rsi, {SHARED + gpa}\nmov rdi, {copy}\nmov ecx, {size}\nrep movsb\nmov qword ptr [{RESULT}], 1\njmp $"
    )
    finished(vm, kernel, 1)
    ping(client)
    kernel.start(
        f"mov rsi, {copy}\nmov rdi, {SHARED + gpa}\nmov ecx, {size}\nrep movsb\nmov qword ptr [{RESULT}], 2\njmp $"
    )
    finished(vm, kernel, 2)
    # Each end keeps its own positions: what was read is not read again. At worst the connection ends.
    with contextlib.suppress(ChannelClosed):
        pings(client)
    comes_back(vm)


def test_kernel_reads_ciphertext_only(resume: Resume) -> None:
    vm = resume()
    gpa, size = area(vm)
    secret = b"nobody but VeilMon may read this"
    client = ChannelClient(vm.user_transport())
    ping(client, secret)
    rings = vm.machine.view(vmpl=3).read(gpa, size, private=False)
    assert any(rings[4096:])
    assert secret not in rings


def test_kernel_says_that_the_rings_are_its_own(resume: Resume) -> None:
    """By the doorbell port, with its own GHCB: an honest host listens to VMPL 0 alone."""
    kernel = Hijack(resume())
    vm = kernel.vm
    before = area(vm)
    heard: list[int] = []
    honest = vm.platform.channel._write
    window = next(item for item in vm.platform.io._windows if item.start == DOORBELL_PORT)

    def listen(offset: int, size: int, value: int) -> None:
        heard.append(value)
        honest(offset, size, value)

    window.write = listen
    for value in (0x8000, DOORBELL_SPOILT):
        assert kernel.ask_host(NaeEvent.IOIO, DOORBELL_PORT << 16 | 1 << 6, rax=value) == (0, 0)
    assert area(vm) == before
    assert not heard
    ping(ChannelClient(vm.user_transport()))
    # The counter-test: a host that listens to every level hears it.
    window.vmpl = 3
    assert kernel.ask_host(NaeEvent.IOIO, DOORBELL_PORT << 16 | 1 << 6, rax=0x8000) == (0, 0)
    assert 0x8000 in heard


def test_host_that_enters_the_monitor_all_the_time(resume: Resume) -> None:
    """It may run any VMSA whenever it likes; the kernel's work and the channel's go on."""
    vm = resume()
    client = ChannelClient(vm.user_transport())
    entered = 0

    def meddle(event: object) -> None:
        nonlocal entered
        vcpu = vm.hypervisor.vcpus[0]
        if vcpu.current is vcpu.contexts[3] and entered < 2000:
            entered += 1
            vm.platform.channel.pending = True
            vm.hypervisor.reschedule = True

    vm.hypervisor.on_event = meddle
    assert vm.run(["sh", "-c", "echo alive"]).stdout == b"alive\n"
    ping(client)
    assert entered > 50
