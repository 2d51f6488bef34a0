# SPDX-License-Identifier: GPL-2.0-or-later
"""What the analysis of a fetched log says of real kernels: busy ones, and those whose audit somebody stopped."""

from __future__ import annotations

import pytest

from tests.e2e.log_guest import log_reader
from veil.cvm import ConfidentialVM
from veil.remote import audit_serials
from veil.remote.audit_rules import load_rules
from veil.remote.log_analysis import LogAnalysis
from veil.remote.log_findings import Finding, FindingKind

RULES = b"-D\n-b 0\n-e 1\n-a always,exit -F arch=b64 -S execve -S openat -k all\n"
WORK = "for j in 1 2 3; do (i=0; while [ $i -lt 30 ]; do /bin/true; cat /etc/group; i=$((i+1)); done) & done; wait"


def sh(vm: ConfidentialVM, script: str) -> None:
    assert vm.run(["/bin/sh", "-c", script]).exit_status == 0


def analyse(vm: ConfidentialVM) -> LogAnalysis:
    reader = log_reader(vm)
    head = reader.head()
    analysis = LogAnalysis()
    for entry in reader.fetch(head):
        analysis.feed(entry)
    analysis.finish(head)
    return analysis


def trouble(vm: ConfidentialVM) -> list[Finding]:
    return [item for item in analyse(vm).findings.items if item.trouble]


@pytest.fixture
def audited(vm: ConfidentialVM) -> ConfidentialVM:
    load_rules(log_reader(vm), RULES)
    sh(vm, WORK)
    return vm


def test_a_busy_kernel_of_two_vcpus() -> None:
    """No number is missing, whichever VCPU handed over its event first."""
    with ConfidentialVM(vcpus=2, fresh=True) as vm:
        log_reader(vm).set_rules(RULES)
        sh(vm, "until auditctl -l | grep -q all; do sleep 0.1; done; " + WORK)
        analysis = analyse(vm)
    kinds = {item.kind for item in analysis.findings.items}
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


def test_the_driver_is_unloaded(audited: ConfidentialVM) -> None:
    assert trouble(audited) == []
    sh(audited, "rmmod veil; sleep 6")
    (finding,) = trouble(audited)
    assert finding.kind == FindingKind.SILENCE
    assert "up to now" in finding.words
