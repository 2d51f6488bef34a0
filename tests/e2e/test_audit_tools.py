# SPDX-License-Identifier: GPL-2.0-or-later
"""What was fetched from VeilS-LOG, read by Debian's own ausearch and aureport, which run in the guest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.log_guest import log_reader
from tests.e2e.snapshots import RunSnapshots
from veil.cvm import ConfidentialVM, Configuration
from veil.cvm.configuration import Settings
from veil.formats.log import AuditRecord, EntryKind, parse_records
from veil.remote.log.folder import LogFolder

SYSCALL, CONFIG_CHANGE = 1300, 1305
LONG = "x" * 9000 + "END"
ODD = ["two words", 'quo"te', "line\nbreak", "back\\slash", "ünï", "12AB"]
ARGUMENTS = ["/bin/busybox", "echo", "plain", *ODD, "", "a0=fake", LONG]
NAMES = ["plain", *ODD, "\ntype=EOE msg=audit(1.0:1):"]
LOG = "/root/audit.log"
NO_CONFIGURATION = b"Config file /etc/audit/auditd.conf doesn't exist, skipping\n"


@dataclass
class Logged:
    """A guest in which things happened, and the folder with what VeilS-LOG kept of them."""

    vm: ConfidentialVM
    folder: LogFolder

    def ask(self, tool: str, *options: str) -> str:
        """Run ausearch or aureport on the fetched file: it must have nothing to complain about."""
        result = self.vm.run([tool, "-if", LOG, *options])
        assert (result.exit_status, result.stderr.replace(NO_CONFIGURATION, b"")) == (0, b"")
        return result.stdout.decode()

    def records(self) -> Iterator[AuditRecord]:
        for entry in self.folder.entries():
            if entry.kind in (EntryKind.RECORDS, EntryKind.INTENT):
                yield from parse_records(entry.body)

    def report(self, *options: str) -> dict[str, int]:
        """aureport's table of totals."""
        table = re.findall(r"^(\d+)  (.*)$", self.ask("aureport", *options, "--summary"), re.MULTILINE)
        return {name: int(total) for total, name in table}

    def count(self, kind: int, text: bytes = b"") -> int:
        return sum(record.type == kind and text in record.text for record in self.records())


def stamps(lines: Iterable[str]) -> set[str]:
    """Time and serial number: one for each event."""
    return {line[line.index("audit(") : line.index("):")] for line in lines}


def shown(name: str) -> str:
    """As the tools print control characters."""
    return name.replace("\n", "\\012")


@pytest.fixture(scope="module")
def logged(
    snapshots: RunSnapshots, audit_guest: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Logged]:
    folder = LogFolder(tmp_path_factory.mktemp("evidence"))
    with ConfidentialVM.restore(snapshots.of(Configuration.make(**audit_guest))) as vm:
        assert vm.run(["mkdir", "/tmp/watched"]).exit_status == 0
        for rule in ("-e 1", "-a always,exit -F arch=b64 -S execve -k run", "-w /tmp/watched -p wa -k files"):
            assert vm.run(["auditctl", *rule.split()]).exit_status == 0
        assert vm.run(ARGUMENTS).exit_status == 0
        for name in NAMES:
            assert vm.run(["/bin/touch", f"/tmp/watched/{name}"]).exit_status == 0
        assert vm.run(["/bin/rm", "/tmp/watched/plain"]).exit_status == 0
        assert vm.run(["/bin/rmdir", "/tmp/watched"]).exit_status == 1
        assert vm.run(["auditctl", "-D"]).exit_status == 0
        reader = log_reader(vm)
        folder.add(list(reader.fetch()), reader.state)
        vm.copy_in(folder.path / "audit.log", LOG)
        yield Logged(vm, folder)


def test_arguments(logged: Logged) -> None:
    found = logged.ask("ausearch", "-m", "EXECVE", "-k", "run", "-i", "--executable", "/bin/busybox")
    event = next(text for text in found.split("----") if "quo" in text and "type=EXECVE" in text)
    # The last record of an event comes first.
    text = " ".join(reversed(re.findall(r"^type=EXECVE msg=audit\([^)]*\) : (.*)$", event, re.MULTILINE)))
    expected = [f"a{number}={shown(argument)}" for number, argument in enumerate(ARGUMENTS)]
    at = 0
    for item in expected[:-1]:
        at = text.index(f"{item} ", at) + len(item)
    assert f"argc={len(ARGUMENTS)} " in text
    long = text[text.index(f"a{len(ARGUMENTS) - 1}_len=", at) :]
    assert "".join(re.findall(r"a\d+\[\d+\]=(\S+)", long)) == LONG


def test_file_events(logged: Logged) -> None:
    found = logged.ask("ausearch", "-k", "files", "-sc", "openat", "-i")
    created = re.findall(r"^type=PATH .*? : item=1 name=(.*) inode=\d+ .* nametype=CREATE ", found, re.MULTILINE)
    assert created == [f"/tmp/watched/{shown(name)}" for name in NAMES]
    deleted = logged.ask("ausearch", "-k", "files", "-sc", "unlink", "-i")
    assert re.findall(r"name=(\S+) inode=\d+ .* nametype=DELETE ", deleted) == ["/tmp/watched/plain"]
    failed = logged.ask("ausearch", "-k", "files", "-sv", "no", "-i")
    assert "syscall=rmdir success=no exit=ENOTEMPTY" in failed
    assert failed.count("type=SYSCALL") == 1


def test_keys_lead_to_events(logged: Logged) -> None:
    for key in ("run", "files"):
        raw = logged.ask("ausearch", "-k", key, "--raw")
        assert raw.count(f'key="{key}"\n') == logged.count(SYSCALL, f'key="{key}"'.encode()) > 0
    assert logged.vm.run(["ausearch", "-if", LOG, "-k", "nobody"]).exit_status == 1


def test_every_record_is_read(logged: Logged) -> None:
    """Nothing is skipped as malformed: raw output is the file, but for the order."""
    written = (logged.folder.path / "audit.log").read_bytes()
    raw = logged.vm.run(["ausearch", "-if", LOG, "--raw"]).stdout
    assert Counter(raw.splitlines()) == Counter(written.splitlines())
    assert len(written.splitlines()) == sum(1 for _ in logged.records())


def test_summary(logged: Logged) -> None:
    counts = dict(re.findall(r"^Number of (.*): (\d+)$", logged.ask("aureport", "--summary"), re.MULTILINE))
    assert int(counts["events"]) == len(stamps(record.text.decode() for record in logged.records()))
    assert int(counts["failed syscalls"]) == logged.count(SYSCALL, b"success=no")
    assert int(counts["changes in configuration"]) == logged.count(CONFIG_CHANGE)
    assert int(counts["keys"]) == 2
    keys = logged.report("-k")
    for key in ("run", "files"):
        assert keys[key] == len(stamps(logged.ask("ausearch", "-k", key, "--raw").splitlines()))
    calls = Counter(
        match[1].decode() for record in logged.records() if (match := re.search(rb" syscall=(\d+) ", record.text))
    )
    assert logged.report("-s") == calls
    programs = Counter(
        match[1].decode() for record in logged.records() if (match := re.search(rb' exe="(.*?)" ', record.text))
    )
    assert logged.report("-x") == programs
    assert {f"/tmp/watched/{shown(name)}" for name in NAMES} <= set(logged.report("-f"))


def test_a_changed_file_is_told(logged: Logged, tmp_path: Path) -> None:
    """That the tests above can fail: a record that is cut short does not come back."""
    data = (logged.folder.path / "audit.log").read_bytes()
    data = data.replace(b"type=EXECVE msg=audit(", b"type=EXECVE msg=audit", 1)
    (tmp_path / "changed").write_bytes(data)
    logged.vm.copy_in(tmp_path / "changed", "/root/changed")
    raw = logged.vm.run(["ausearch", "-if", "/root/changed", "--raw"])
    assert Counter(raw.stdout.splitlines()) != Counter(data.splitlines())
