# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver in the hands of a compromised kernel, and a host that does not run the services.

What was handed over before stays, and that nothing comes any more is visible. A kernel that must wait loses nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.hostile_module import HostileKernel
from tests.e2e.log_guest import log_reader, log_service, records_of, service_parameters, verified
from tests.e2e.snapshots import Resume
from veil.cvm import CommandTimeout, ConfidentialVM
from veil.formats.ghcb import MsrRequest
from veil.formats.log import EntryKind, Head, LogEntry
from veil.host import Hypervisor, RunResult
from veil.host.ghcb import msr_protocol
from veil.host.vcpu import Context, Vcpu
from veil.snp import Permission

pytestmark = [
    pytest.mark.open_kernel("the kernel is the attacker: it loads a module of its own, and loses the driver"),
    pytest.mark.usefixtures("idle_time_passes"),
]


@pytest.fixture
def kernel(resume: Resume, tmp_path: Path) -> HostileKernel:
    return HostileKernel(resume(), tmp_path)


def texts(entries: list[LogEntry], word: str) -> list[str]:
    """The records with this word, without time and serial number."""
    found = [item.text.decode().partition("): ")[2] for item in records_of(entries)]
    return [text for text in found if text.startswith(word)]


def numbered(word: str, count: int, who: str = "n") -> list[str]:
    return [f"{word} {who}={number}" for number in range(count)]


def heads_apart(vm: ConfidentialVM) -> tuple[Head, Head]:
    """Two heads with more than a heartbeat's time between them, on the machine's clock."""
    reading = log_reader(vm)
    first = reading.head()
    # Further heads are new ones of the same log.
    while (head := reading.head()).time_ns < first.time_ns + 1_500_000_000:
        vm.hypervisor.run(timeout=0.25)
    return first, head


def another_entry(vm: ConfidentialVM) -> None:
    """Run the guest until the log has one more."""
    store = log_service(vm).store
    size = store.next
    assert vm.hypervisor.run(until=lambda: store.next > size, timeout=60) == RunResult.DONE


@pytest.mark.parametrize("how", ["none", "kernel text", "ftrace switched off"])
def test_kernel_that_takes_the_hook_away(kernel: HostileKernel, how: str) -> None:
    kernel.do("records", text="before", count=2)
    if how == "kernel text":
        kernel.do("unhook")
    elif how == "ftrace switched off":
        kernel.sh("echo 0 > /proc/sys/kernel/ftrace_enabled")
    kernel.do("records", text="after", count=2)
    # The kernel made them: they stand in its own log (of which printk leaves out what is too much).
    kernel.sh("until dmesg | grep -q 'after n=0'; do sleep 0.05; done", timeout=60)
    entries = verified(kernel.vm)
    assert texts(entries, "before") == numbered("before", 2)
    assert texts(entries, "after") == (numbered("after", 2) if how == "none" else [])


@pytest.mark.parametrize("how", ["none", "stop_heart", "rmmod"])
def test_silence(kernel: HostileKernel, how: str) -> None:
    kernel.do("records", text="before", count=3)
    if how == "stop_heart":
        kernel.do("stop_heart", heart=kernel.symbol("heartbeat_work"))
    elif how == "rmmod":
        kernel.sh("rmmod veil")
        kernel.do("records", text="after", count=3)
    first, second = heads_apart(kernel.vm)
    assert second.time_ns > first.time_ns
    # Without an attack the heart beats in that time.
    assert (second.last_ns == first.last_ns) == (how != "none")
    entries = verified(kernel.vm)
    # The service itself says that it heard nothing, if the test took long enough.
    kernels = [entry for entry in entries if entry.kind != EntryKind.SILENCE]
    assert (kernels[-1].sequence < first.size) == (how != "none")
    assert texts(entries, "before") == numbered("before", 3)
    assert texts(entries, "after") == []
    assert second.last_ns >= kernels[-1].time_ns or how == "none"


def test_tasks_that_never_finish_their_records(kernel: HostileKernel) -> None:
    """More of them than there are collections: others' records go one by one, theirs when they end. None is lost."""
    kernel.do("fill_collections", text="full", count=100)
    kernel.do("records", text="later", count=3)
    entries = verified(kernel.vm)
    for number in (1000, 1001):
        found = [text for text in texts(entries, "full") if text.endswith(f"={number}")]
        assert found == [f"full group={number}", f"full cwd={number}"]
    assert texts(entries, "later") == numbered("later", 3)
    expected = {f"full {kind}={number}" for kind in ("group", "cwd") for number in (*range(100), 1000, 1001)}
    # With the driver's next sign of life.
    for _ in range(3):
        if not expected <= set(texts(entries, "full")):
            another_entry(kernel.vm)
            entries = verified(kernel.vm)
    assert sorted(text for text in texts(entries, "full") if "=" in text) == sorted(expected)


@pytest.mark.parametrize("end", ["next event", "rmmod"])
def test_ends_that_are_lost(kernel: HostileKernel, end: str) -> None:
    """A rule may exclude them, or the audit system find no room: the event goes when the task's next one begins."""
    if end == "next event":
        kernel.do("lost_end", text="open", count=4)
    else:
        kernel.sh("insmod hostile.ko attack=fill_collections text=open count=4 && rmmod veil")
    found = texts(verified(kernel.vm), "open")
    for number in range(4):
        assert [text for text in found if text.endswith(f"={number}")] == [f"open group={number}", f"open cwd={number}"]


def test_host_that_does_not_run_the_services(kernel: HostileKernel) -> None:
    """The kernel waits at its first record. When the host has thought better of it, all are there."""
    vm = kernel.vm
    # With the services there, it does not wait.
    kernel.do("records", text="before", count=4)
    store = log_service(vm).store
    contexts = vm.hypervisor.vcpus[0].contexts
    services = contexts.pop(1)
    size = store.next
    with pytest.raises(CommandTimeout):
        kernel.do("records", text="waits", count=4, timeout=1.0)
    assert store.next == size
    contexts[1] = services
    assert vm.hypervisor.run(until=lambda: store.next >= size + 4, timeout=30) == RunResult.DONE
    entries = verified(vm)
    while len(texts(entries, "waits")) < 4:  # signs of life may have come first
        entries = verified(vm)
    assert texts(entries, "before") + texts(entries, "waits") == numbered("before", 4) + numbered("waits", 4)


@pytest.mark.parametrize("lies", [False, True])
def test_host_that_says_it_did_not_run_the_services(
    kernel: HostileKernel, lies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But did. Asked again and again, they would keep the same record until nothing else finds room."""
    honest = msr_protocol._HANDLERS[MsrRequest.RUN_VMPL]

    def run_vmpl(host: Hypervisor, vcpu: Vcpu, context: Context, value: int) -> int:
        answer = honest(host, vcpu, context, value)
        return answer | 1 << 32 if lies and value >> 32 == 1 else answer

    monkeypatch.setitem(msr_protocol._HANDLERS, MsrRequest.RUN_VMPL, run_vmpl)
    kernel.do("records", text="once", count=3, timeout=60)
    monkeypatch.undo()
    assert texts(verified(kernel.vm), "once") == numbered("once", 3)


def test_host_that_takes_the_logs_memory_away(kernel: HostileKernel) -> None:
    """The service cannot keep the next record, and does not say that it did: the kernel waits."""
    vm = kernel.vm
    kernel.do("records", text="before", count=4)
    store = log_service(vm).store
    size = store.next
    page = service_parameters(vm).memory_gpa + store._head % store._size & -4096
    host, monitor = vm.machine.host_view(), vm.machine.view(vmpl=0)
    host.psmash(page & -(2 << 20))
    host.rmpupdate(page, assigned=False)
    with pytest.raises(CommandTimeout):
        kernel.do("records", text="waits", count=4, timeout=1.0)
    assert store.next == size
    # VeilMon would not validate it again. If it did, with what was there, nothing would be missing.
    host.rmpupdate(page, assigned=True)
    monitor.pvalidate(page)
    monitor.rmpadjust(page, vmpl=1, permissions=Permission.RW)
    entries = verified(vm)
    while len(texts(entries, "waits")) < 4:
        entries = verified(vm)
    assert texts(entries, "before") + texts(entries, "waits") == numbered("before", 4) + numbered("waits", 4)


def test_two_vcpus_call_at_once(resume: Resume, tmp_path: Path) -> None:
    """Each hands over in its own block while the other one does: every record is there, in its CPU's order."""
    vm = resume(vcpus=2)
    kernel = HostileKernel(vm, tmp_path)
    kernel.do("on_all_cpus", text="both", count=300)
    entries = verified(vm)
    for cpu in range(2):
        assert texts(entries, f"both cpu{cpu}=") == numbered("both", 300, f"cpu{cpu}")
    order = [text.split("=")[0] for text in texts(entries, "both")]
    assert order != sorted(order), "they took turns"
    assert {entry.kind for entry in entries} >= {EntryKind.RECORDS, EntryKind.HEARTBEAT}
