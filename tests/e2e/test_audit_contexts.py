# SPDX-License-Identifier: GPL-2.0-or-later
"""Audit records of every kind of origin reach VeilS-LOG: system calls on several CPUs, signals, users' messages."""

from __future__ import annotations

import re

import pytest

from tests.e2e.log_guest import log_reader
from tests.e2e.snapshots import Resume
from veil.cvm import ConfidentialVM
from veil.formats.log import EntryKind, parse_records
from veil.remote.log.analysis import LogAnalysis
from veil.remote.log.audit_rules import load_rules

pytestmark = pytest.mark.usefixtures("idle_time_passes")

SYSCALL, CONFIG_CHANGE, EOE, ANOMALY = 1300, 1305, 1320, 1701
RULES = b"-D\n-b 0\n-e 1\n-a always,exit -F arch=b64 -S openat,execve,unlink,clone,exit_group -k all\n"


@pytest.mark.parametrize("single", [False, True])
def test_several_cpus(single: bool, resume: Resume) -> None:
    vm = resume(vcpus=2)
    switch = "/sys/module/veil/parameters/log_single"
    assert vm.run(["/bin/sh", "-c", f"echo {int(single)} >{switch}"]).exit_status == 0
    reader = log_reader(vm)
    load_rules(reader, RULES, wait=vm.wait)
    work = "i=0; while [ $i -lt 12 ]; do touch /tmp/$0.$i; rm /tmp/$0.$i; i=$((i+1)); done"
    script = f"for n in 1 2 3 4 5 6; do sh -c '{work}' $n & done; wait; sleep 0.1"
    assert vm.run(["/bin/sh", "-c", script]).exit_status == 0
    assert vm.run(["auditctl", "-D"]).exit_status == 0
    head = reader.head()
    analysis = LogAnalysis()
    events: dict[bytes, list[int]] = {}
    whole = 0
    for entry in reader.fetch(head):
        analysis.feed(entry)
        if entry.kind != EntryKind.RECORDS:
            continue
        records = parse_records(entry.body)
        whole += records[0].type == SYSCALL and records[-1].type == EOE
        for item in records:
            stamp = item.text.partition(b"): ")[0]
            events.setdefault(stamp, []).append(item.type)
    analysis.finish(head)
    assert [item.words for item in analysis.findings.items if item.trouble] == []
    calls = [kinds for kinds in events.values() if SYSCALL in kinds]
    assert len(calls) > 140
    # An event's records stay in their order, from the system call to its end, whatever other CPUs do meanwhile.
    disordered = [kinds for kinds in calls if kinds[0] != SYSCALL or kinds[-1] != EOE]
    assert [kinds for kinds in disordered if kinds[0] != CONFIG_CHANGE] == []
    assert whole == (0 if single else len(calls))


def test_signals_and_messages(vm: ConfidentialVM) -> None:
    reader = log_reader(vm)
    load_rules(reader, b"-D\n-b 0\n-e 1\n", wait=vm.wait)
    assert vm.run(["/bin/sh", "-c", "kill -SEGV $$"]).exit_status == 128 + 11
    assert vm.run(["auditctl", "-m", "a word from a user"]).exit_status == 0
    found = [item for entry in reader.fetch() if entry.kind == EntryKind.RECORDS for item in parse_records(entry.body)]
    assert any(item.type == ANOMALY and b"sig=11" in item.text for item in found)
    assert any(b"a word from a user" in item.text for item in found)


@pytest.mark.open_kernel("the driver is unloaded")
def test_status(vm: ConfidentialVM) -> None:
    load_rules(log_reader(vm), RULES, wait=vm.wait)
    said = vm.run(["veil-status"])
    assert said.exit_status == 0
    assert re.search(rb"^[1-9]\d* audit records were handed to VeilS-LOG\n", said.stdout)
    assert vm.run(["rmmod", "veil"]).exit_status == 0
    said = vm.run(["veil-status"])
    assert (said.exit_status, said.stdout) == (1, b"")
    assert b"the driver is not loaded" in said.stderr
