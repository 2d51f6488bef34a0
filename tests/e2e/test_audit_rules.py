# SPDX-License-Identifier: GPL-2.0-or-later
"""Audit rules by way of VeilS-LOG, and what the kernel then does before and after an event."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.log_guest import DROPPING_LOG, log_reader, trust_in
from tests.e2e.snapshots import Resume
from veil import installation
from veil.cvm import ConfidentialVM
from veil.formats.log import EntryKind, parse_records
from veil.remote import ChannelClient
from veil.remote.channel.identity import UserKey
from veil.remote.errors import RemoteError
from veil.remote.log.audit_rules import default_rules, load_rules
from veil.remote.log.connect import open_log
from veil.remote.log.reader import LogReader

pytestmark = pytest.mark.usefixtures("idle_time_passes")


@pytest.fixture
def reader(vm: ConfidentialVM) -> Iterator[LogReader]:
    with ChannelClient(vm.user_transport(), identity=installation.user_key()) as client:
        yield open_log(client, trust_in(vm))


def sh(vm: ConfidentialVM, script: str) -> str:
    return vm.run(["/bin/sh", "-c", script]).stdout.decode()


def lines(reader: LogReader) -> list[tuple[EntryKind, list[tuple[int, str]]]]:
    return [
        (entry.kind, [(item.type, item.text.decode()) for item in parse_records(entry.body)])
        for entry in reader.fetch()
        if entry.kind in (EntryKind.RECORDS, EntryKind.INTENT)
    ]


def test_default_rules(vm: ConfidentialVM, reader: LogReader) -> None:
    assert "No rules" in sh(vm, "auditctl -l")
    load_rules(reader, default_rules(), wait=vm.wait)
    listed = sh(vm, "auditctl -l")
    wanted = [line for line in default_rules().decode().splitlines() if line.startswith(("-a", "-w"))]
    assert len(listed.splitlines()) == len(wanted)
    rules = [entry for entry in reader.fetch() if entry.kind == EntryKind.RULES]
    assert [entry.body for entry in rules] == [installation.user_key().fingerprint + default_rules()]
    sh(vm, "echo root2 >/etc/shadow2; cat /etc/passwd; su nobody -s /bin/true")
    seen = lines(reader)
    texts = [text for _, records in seen for _, text in records]
    assert any('name="/etc/shadow2"' in text for text in texts)
    assert not any('name="/etc/passwd"' in text and "system-files" in text for text in texts)
    assert any('key="privilege"' in text for text in texts)


def test_the_intent_comes_first(vm: ConfidentialVM, reader: LogReader) -> None:
    load_rules(reader, b"-D\n-b 0\n-e 1\n-a always,exit -F arch=b64 -S execve -k exec\n", wait=vm.wait)
    list(reader.fetch())
    sh(vm, "cp /bin/busybox '/tmp/a \"b' && '/tmp/a \"b' true; nc -l -p 7777 & sleep 0.1; kill %1; insmod /nothing.ko")
    seen = lines(reader)
    name = b'/tmp/a "b'.hex().upper()
    found = [kind for kind, records in seen for _, text in records if f"exe={name}" in text or f"file={name}" in text]
    assert found[:2] == [EntryKind.INTENT, EntryKind.RECORDS]
    intents = [records[0][1] for kind, records in seen if kind == EntryKind.INTENT]
    assert any("op=bind" in text and "lport=7777" in text for text in intents)
    assert all(text.startswith("audit(") and text.endswith("'") for text in intents)


def test_a_module_is_announced_before_it_runs(vm: ConfidentialVM, reader: LogReader) -> None:
    load_rules(reader, b"-D\n-b 0\n-e 1\n", wait=vm.wait)
    sh(vm, "cp $(find /lib/veil -name 'gcm.ko' | head -1) /tmp/x.ko; insmod /tmp/x.ko")
    intents = [records[0][1] for kind, records in lines(reader) if kind == EntryKind.INTENT]
    assert any("op=module" in text and 'file="/tmp/x.ko"' in text for text in intents)


def test_intents_that_the_measured_policy_names(resume: Resume) -> None:
    vm = resume(**DROPPING_LOG)
    reader = log_reader(vm)
    load_rules(reader, b"-D\n-b 0\n-e 1\n", wait=vm.wait)
    sh(vm, "nc -l -p 7777 & sleep 0.1; kill %1; su nobody -s /bin/true")
    intents = [records[0][1] for kind, records in lines(reader) if kind == EntryKind.INTENT]
    assert len(intents) == 1
    assert "lport=7777" in intents[0]


def test_no_audit_no_intents(vm: ConfidentialVM, reader: LogReader) -> None:
    sh(vm, "true; su nobody -s /bin/true")
    assert lines(reader) == []


def test_rules_that_auditctl_refuses(vm: ConfidentialVM, reader: LogReader) -> None:
    with pytest.raises(RemoteError, match="auditctl refused the rules"):
        load_rules(reader, b"-a always,exit -S mount\n-a sometimes,exit -S nothing\n", wait=vm.wait)
    assert len(sh(vm, "auditctl -l").splitlines()) == 1


def test_what_auditctl_says_of_them(vm: ConfidentialVM, reader: LogReader) -> None:
    """On x86-64 there is no umount. Rules that are good afterwards take its words back."""
    rules = b"-D\n-a always,exit -F arch=b64 -S execve\n# unmounting\n-a always,exit -F arch=b64 -S umount -k mounts\n"
    with pytest.raises(RemoteError) as found:
        load_rules(reader, rules, wait=vm.wait)
    assert "Syscall name unknown: umount; There was an error in line 4 of" in str(found.value)
    assert "; line 4 is: -a always,exit -F arch=b64 -S umount -k mounts; rules before" in str(found.value)
    load_rules(reader, b"-D\n", wait=vm.wait)
    assert reader.rules().words == b""


def test_rules_that_lock_themselves(vm: ConfidentialVM, reader: LogReader) -> None:
    """`-e 2`: the kernel takes no others until it is started anew, from nobody; what it records goes on."""
    load_rules(reader, b"-D\n-b 0\n-a always,exit -F arch=b64 -S execve -k exec\n-e 2\n", wait=vm.wait)
    assert "enabled 2" in sh(vm, "auditctl -s")
    for text in (b"-D\n", b"-D\n-b 0\n-e 0\n", b"-a always,exit -F arch=b64 -S mount\n"):
        with pytest.raises(RemoteError, match=r"refused the rules .*locked \(-e 2\) until it is booted anew"):
            load_rules(reader, text, wait=vm.wait)
    (rule,) = sh(vm, "auditctl -D >/dev/null 2>&1; auditctl -l").splitlines()
    assert "execve" in rule
    list(reader.fetch())
    sh(vm, "/bin/true")
    assert any("/bin/true" in text for kind, records in lines(reader) for _, text in records)


def test_words_of_the_kernels_choice(vm: ConfidentialVM, reader: LogReader) -> None:
    """They do not steer the owner's terminal, and are not long."""
    sh(vm, "printf '#!/bin/sh\\nprintf \"\\\\033[2J%%02000d in line 99\" 7 >&2; exit 1\\n' >/sbin/auditctl")
    with pytest.raises(RemoteError, match="auditctl refused the rules") as found:
        load_rules(reader, b"-D\n", wait=vm.wait)
    assert "\\x1b[2J0000" in str(found.value)
    assert str(found.value).isprintable()
    assert len(reader.rules().words) == 1024


@pytest.mark.open_kernel("the driver is unloaded")
def test_a_kernel_without_driver_says_nothing(vm: ConfidentialVM, reader: LogReader) -> None:
    sh(vm, "rmmod veil")
    with pytest.raises(RemoteError, match="has not loaded the rules"):
        load_rules(reader, default_rules(), seconds=1.5)


def test_only_owners_and_only_rules(vm: ConfidentialVM, reader: LogReader) -> None:
    for text in (b"", b"-D\n\0", b"x" * 20000, "-w /ä".encode()):
        with pytest.raises(RemoteError, match="audit rules"):
            reader.set_rules(text)
    with ChannelClient(vm.user_transport(), identity=UserKey.generate()) as client:
        stranger = open_log(client, trust_in(vm))
        with pytest.raises(RemoteError, match="only an owner"):
            stranger.set_rules(default_rules())
