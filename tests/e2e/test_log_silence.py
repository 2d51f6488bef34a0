# SPDX-License-Identifier: GPL-2.0-or-later
"""What the analysis of a fetched log says of real kernels: busy ones, and those whose audit somebody stopped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.hostile_module import HostileKernel
from tests.e2e.idle_time import NO_PULSE
from tests.e2e.log_guest import log_reader
from tests.e2e.snapshots import Resume, RunSnapshots
from veil.cvm import ConfidentialVM
from veil.formats.log import AuditState, EntryKind, Heartbeat
from veil.remote.log import serials as audit_serials
from veil.remote.log.analysis import LogAnalysis
from veil.remote.log.audit_rules import load_rules
from veil.remote.log.findings import Finding, FindingKind
from veil.remote.log.recording import PATIENCE

pytestmark = pytest.mark.usefixtures("idle_time_passes")

RULES = b"-D\n-b 0\n-e 1\n-a always,exit -F arch=b64 -S execve -S openat -k all\n"
WORK = "for j in 1 2 3; do (i=0; while [ $i -lt 30 ]; do /bin/true; cat /etc/group; i=$((i+1)); done) & done; wait"


def sh(vm: ConfidentialVM, script: str) -> None:
    assert vm.run(["/bin/sh", "-c", script]).exit_status == 0


def analyse(vm: ConfidentialVM, silence_ns: int = 5_000_000_000) -> LogAnalysis:
    reader = log_reader(vm)
    head = reader.head()
    analysis = LogAnalysis(silence_ns=silence_ns)
    for entry in reader.fetch(head):
        analysis.feed(entry)
    analysis.finish(head)
    return analysis


def trouble(vm: ConfidentialVM) -> list[Finding]:
    return [item for item in analyse(vm).findings.items if item.trouble]


@pytest.fixture
def audited(vm: ConfidentialVM, snapshots: RunSnapshots) -> Iterator[ConfidentialVM]:
    """A copy of a guest that has worked under rules."""

    def work(path: Path) -> None:
        load_rules(log_reader(vm), RULES, wait=vm.wait)
        sh(vm, WORK)
        vm.snapshot(path)

    with ConfidentialVM.restore(snapshots.once(f"audited-{vm.configuration.key()}", work)) as copy:
        yield copy


def test_a_busy_kernel_of_two_vcpus(resume: Resume) -> None:
    """No number is missing, whichever VCPU handed over its event first."""
    vm = resume(vcpus=2)
    log_reader(vm).set_rules(RULES)
    sh(vm, "until auditctl -l | grep -q all; do sleep 0.1; done; " + WORK)
    analysis = analyse(vm)
    # While a user measures the image in this thread, nothing is run.
    kinds = {item.kind for item in analysis.findings.items} - {FindingKind.SILENCE}
    # Of a kernel that is locked down: what it says of it and of its modules.
    kinds -= {FindingKind.CODE_INTEGRITY, FindingKind.MODULES}
    assert kinds <= {FindingKind.RULES, FindingKind.AUDIT_ON, FindingKind.RESUMED}
    assert analysis.findings.trouble == 0
    assert analysis.summary.records > 1000


def test_audit_is_switched_off(audited: ConfidentialVM) -> None:
    assert trouble(audited) == []
    sh(audited, "auditctl -e 0 && /bin/true")
    assert [item.kind for item in trouble(audited)] == [FindingKind.AUDIT_OFF]


def test_records_that_were_not_handed_over(audited: ConfidentialVM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's hook is off for a while, and its heart beats on: the kernel's numbers tell."""
    hook = "/proc/sys/kernel/ftrace_enabled"
    sh(audited, f"echo 0 >{hook}; /bin/true; echo 1 >{hook}; /bin/true; sleep 3")
    monkeypatch.setattr(audit_serials, "SETTLE_NS", 1_000_000_000)
    analysis = analyse(audited)
    found = [item for item in analysis.findings.items if item.trouble]
    assert {item.kind for item in found} == {FindingKind.MISSING}
    assert analysis.findings.first_distrusted in found


@pytest.mark.open_kernel("the driver is unloaded")
def test_the_driver_is_unloaded(audited: ConfidentialVM) -> None:
    assert trouble(audited) == []
    sh(audited, "rmmod veil")
    for _ in range(60):
        audited.wait(0.5)
        if found := trouble(audited):
            break
    (finding,) = found
    assert finding.kind == FindingKind.SILENCE
    assert "up to now: the kernel was silent; the services ran for" in finding.words


# Signs of life


def heartbeats(vm: ConfidentialVM) -> list[Heartbeat]:
    return [Heartbeat.parse(item.body) for item in log_reader(vm).fetch() if item.kind == EntryKind.HEARTBEAT]


def ticks(vm: ConfidentialVM) -> tuple[int, int]:
    """The driver's count, and the kernel's of its local timers' interrupts."""
    text = vm.run(["sh", "-c", "cat /dev/veil; grep LOC: /proc/interrupts"]).stdout.decode().split()
    return int(text[text.index("ticks") + 1]), int(text[text.index("LOC:") + 1])


def test_what_heartbeats_say(vm: ConfidentialVM) -> None:
    """The count of timer interrupts is the kernel's own, and the rest is so too."""
    first, first_interrupts = ticks(vm)
    load_rules(log_reader(vm), RULES, wait=vm.wait)
    size = len(heartbeats(vm))
    while len(heartbeats(vm)) < size + 2:
        vm.wait(0.5)
    found = heartbeats(vm)
    second, second_interrupts = ticks(vm)
    assert 0 < second - first <= second_interrupts - first_interrupts
    assert [item.ticks for item in found] == sorted(item.ticks for item in found)
    assert first <= found[-1].ticks <= second
    assert (found[-1].audit, found[-1].rules) == (AuditState.ON, 1)
    assert (found[0].audit, found[0].rules) == (AuditState.OFF, 0)


def test_a_machine_that_stands_still(vm: ConfidentialVM) -> None:
    """Its time stamp counter goes on, and nobody is run: the kernel is not silent then."""
    size = len(heartbeats(vm))
    vm.machine._engine.set_tsc(vm.machine.tsc() + 60_000_000_000)
    while len(heartbeats(vm)) < size + 2:
        vm.wait(0.5)
    analysis = analyse(vm)
    # A busy computer may have made it stand still before, too.
    found = [item for item in analysis.findings.items if item.kind == FindingKind.SILENCE]
    assert found
    assert all("the machine was not run, or hardly" in item.words and not item.trouble for item in found)
    assert analysis.findings.first_distrusted is None


@pytest.mark.open_kernel("the kernel is the attacker, and loads a module of its own")
@pytest.mark.parametrize("lies", [False, True])
@pytest.mark.parametrize("honest_host", [False, True])
def test_a_kernel_that_is_silent_and_runs_on(vm: ConfidentialVM, tmp_path: Path, lies: bool, honest_host: bool) -> None:
    """Its own count gives it away; if it lies about that, an honest host's services do.

    Both together make it a note. What they gain is what heartbeats in that time would have given them.
    """
    kernel = HostileKernel(vm, tmp_path)
    log_reader(vm).head()
    if not honest_host:
        vm.hypervisor.pulse.due_ns = NO_PULSE
    heart, ticker = kernel.symbol("heartbeat_work"), kernel.symbol("ticker")
    if lies:
        kernel.do("stop_ticker", ticker=ticker)
    kernel.do("stop_heart", heart=heart)
    vm.wait(5.0)
    kernel.do("start_heart", heart=heart)
    analysis = analyse(vm, silence_ns=3_000_000_000)
    finding = [item for item in analysis.findings.items if item.kind == FindingKind.SILENCE][-1]
    assert finding.distrust == (honest_host or not lies), finding
    if honest_host:
        assert "the kernel was silent; the services ran for" in finding.words
    else:
        assert ("the machine was not run, or hardly" if lies else "its own count of timer interrupts") in finding.words


# Rules


@pytest.mark.parametrize("explicit", [b"", b"-e 0\n", b"-e 1\n"])
def test_rules_switch_audit_on(vm: ConfidentialVM, explicit: bytes) -> None:
    """As auditd does when it starts, unless the owner says what to do."""
    rules = b"-D\n# not -e 0\n-b 8192\n-a always,exit -F arch=b64 -S execve\n"
    load_rules(log_reader(vm), rules + explicit, wait=vm.wait)
    state = vm.run(["auditctl", "-s"]).stdout.decode()
    assert f"enabled {int(b'0' not in explicit)}" in state
    size = len(heartbeats(vm))
    while len(heartbeats(vm)) < size + PATIENCE + 1:
        vm.wait(1)
    records = sum(item.kind == EntryKind.RECORDS for item in log_reader(vm).fetch())
    assert (records > 0) == (b"0" not in explicit)
    assert trouble(vm) == []


def test_rules_and_a_kernel_that_records_nothing(vm: ConfidentialVM) -> None:
    """It says that it has loaded the rules: somebody put another program in auditctl's place."""
    sh(vm, "printf '#!/bin/sh\\n' >/sbin/auditctl")
    load_rules(log_reader(vm), b"-D\n-w /etc -p wa\n", wait=vm.wait)
    size = len(heartbeats(vm))
    while len(heartbeats(vm)) < size + PATIENCE + 1:
        vm.wait(1)
    (finding,) = trouble(vm)
    assert finding.kind == FindingKind.NOT_RECORDING
    assert "it says that it has loaded them, and that its audit is off" in finding.words
