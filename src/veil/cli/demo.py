# SPDX-License-Identifier: GPL-2.0-or-later
"""veil demo: what `make run` shows."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from veil.cli.common import Progress
from veil.cli.output import raw, say
from veil.errors import VeilError
from veil.private_files import write_new

if TYPE_CHECKING:
    from veil.cvm import ConfidentialVM
    from veil.formats.launch_digest import LaunchLog
    from veil.formats.log import LogEntry
    from veil.remote.attestation.evidence import Attested
    from veil.remote.log.folder import LogFolder
    from veil.remote.log.reader import LogReader

__all__ = ["demo"]

_SCRIPT = """
echo '$ uname -a'; uname -a
echo "\\$ dmesg | grep -E 'Memory Encryption|SNP running'"
dmesg | grep -E 'Memory Encryption|SNP running'
echo "\\$ grep -o -w svsm /proc/cpuinfo"; grep -o -w svsm /proc/cpuinfo
"""

# What somebody does who breaks in, up to the point at which the kernel is theirs.
_BREAK_IN = """
echo 'somebody::0:0::/:/bin/sh' >>/etc/passwd
su nobody -s /bin/sh -c 'id' >/dev/null
nc -l -p 4444 & sleep 0.1; kill %1
echo '$ dmesg | grep -c audit:'; dmesg | grep -c audit:
"""
_HIDE = """
echo '$ insmod intruder.ko'; insmod /root/intruder.ko
echo '$ dmesg | grep -c audit:'; dmesg | grep -c audit:
echo '$ dmesg | tail -3'; dmesg | tail -3 | cut -c1-80
cat /etc/passwd >/etc/copy
"""
_SHOWN = ("/etc/passwd", "op=privilege", "lport=4444", "intruder.ko")


@click.command()
def demo() -> int:
    """Boot the stock kernel under VeilMon and attest it; then break into its kernel, and read what VeilS-LOG kept.

    The intruder is a kernel module of ours: it wipes the kernel's own audit queues and log, forges a record, and
    switches audit off behind the kernel's back.
    """
    from veil.cvm import ConfidentialVM

    vm = ConfidentialVM(progress=Progress())
    # Before the boot: the guest runs in this thread, and stands still while something else does.
    intruder, expected = vm.build_intruder(), vm.build_image().log()
    with vm, tempfile.TemporaryDirectory(prefix="veil-demo-") as directory:
        say(f"launch digest {vm.machine.secure_processor.measurement.hex()}")
        _in_guest(vm, _SCRIPT)
        with _open_log(vm, expected) as reader:
            _show_log(vm, reader, intruder, Path(directory))
    return 0


def _in_guest(vm: ConfidentialVM, script: str) -> None:
    result = vm.run(["/bin/sh", "-c", script], stdout=lambda data: raw(1, data), stderr=lambda data: raw(2, data))
    if result.exit_status:
        raise VeilError(f"the guest's script ended with status {result.exit_status}")


@contextmanager
def _open_log(vm: ConfidentialVM, expected: LaunchLog) -> Iterator[LogReader]:
    """As `veil attest --software` does: raises VerificationFailed if anything does not hold."""
    from veil import installation
    from veil.remote import ChannelClient, Policy, Trust, TrustedRoots
    from veil.remote.log.connect import open_log

    roots = TrustedRoots.amd().with_software_root(installation.software_root())
    with ChannelClient(vm.user_transport(), identity=installation.user_key()) as client:
        yield open_log(client, Trust(Policy(), roots=roots, expected=expected), on_attested=_show_attestation)


def _show_attestation(outcome: Attested) -> None:
    say("$ veil attest --software")
    for name in ("freshness", "channel key", "report signature", "measurement", "VMPL"):
        words = next(check.words for check in outcome.checks if check.name == name)
        say(f"ok    {name:<16}  {words}")
    say(f"verified ({len(outcome.checks)} checks); machine: {outcome.machine}")


def _show_log(vm: ConfidentialVM, reader: LogReader, intruder: bytes, directory: Path) -> None:
    """Audit rules, a break-in, a kernel that is no longer its own; and the evidence."""
    from veil.formats.log import EntryKind, parse_records
    from veil.remote.log.audit_rules import default_rules, load_rules
    from veil.remote.log.folder import LogFolder

    say("$ veil logs rules")
    load_rules(reader, default_rules(), wait=vm.wait)
    say("the kernel says that it has loaded the rules")
    say("somebody breaks in, and writes to /etc/passwd; then loads a module that hides it")
    _in_guest(vm, _BREAK_IN)
    _put_intruder(vm, intruder, directory)
    handed_over = _records_handed_over(vm)
    _in_guest(vm, _HIDE)
    say("$ veil logs fetch")
    folder = LogFolder(directory / "evidence")
    head = reader.head()
    with folder.lock():
        count = folder.add(list(reader.fetch(head)), reader.state)
    say(f"{count} new entries verified, {head.size} in all")
    moment, records = None, 0
    for entry in folder.verified():
        _show_entry(entry)
        if entry.kind == EntryKind.INTENT and b"intruder.ko" in entry.body:
            moment = entry.sequence
        if entry.kind == EntryKind.RECORDS and moment is None:
            records += len(parse_records(entry.body))
    if moment is None or records < handed_over:
        raise VeilError(f"the log has {records} records from before the module, and the kernel had made {handed_over}")
    say(f"the kernel had made {handed_over} records before that module ran: all of them are here, and proven")
    say(f"$ veil logs verify --untrusted-from {moment + 1}")
    _verify(folder, moment + 1)


def _show_entry(entry: LogEntry) -> None:
    """Lines that tell of the break-in."""
    from veil.remote.log.audit_lines import audit_lines

    for line in audit_lines(entry):
        kind, _, text = line.decode(errors="replace").strip().partition(" msg=")
        if any(word in text for word in _SHOWN) and kind in ("type=PATH", "type=TRUSTED_APP"):
            words = text.partition("msg='")[2].rstrip("'") or text.partition("): ")[2].partition(" inode=")[0]
            say(f"  entry {entry.sequence}: {words}")


def _put_intruder(vm: ConfidentialVM, intruder: bytes, directory: Path) -> None:
    place = directory / "intruder.ko"
    write_new(place, intruder)
    vm.copy_in(place, "/root/intruder.ko")


def _records_handed_over(vm: ConfidentialVM) -> int:
    said = re.search(rb"\brecords (\d{1,18})\b", vm.run(["cat", "/dev/veil"]).stdout)
    if said is None:
        raise VeilError("the guest's driver does not say how many records it has handed over")
    return int(said[1])


def _verify(folder: LogFolder, moment: int) -> None:
    from veil.cli.logs.verify import verify

    verify.main(["--to", str(folder.path), "--untrusted-from", str(moment)], standalone_mode=False)
