# SPDX-License-Identifier: GPL-2.0-or-later
"""The demonstration's third part: an intruder who takes the kernel over, and what VeilS-LOG kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from veil.cli.demo.guest import in_guest, put
from veil.cli.output import say
from veil.cli.own_cvm import own_client
from veil.errors import VeilError

if TYPE_CHECKING:
    from veil.cvm import ConfidentialVM
    from veil.formats.launch_digest import LaunchLog
    from veil.formats.log import LogEntry
    from veil.remote.log.folder import LogFolder
    from veil.remote.log.reader import LogReader

__all__ = ["show_log"]

# What somebody does who breaks in, up to the point at which the kernel is theirs.
_BREAK_IN = """
echo 'somebody::0:0::/:/bin/sh' >>/etc/passwd
su nobody -s /bin/sh -c 'id' >/dev/null
nc -l -p 4444 & sleep 0.1; kill %1
echo '$ dmesg | grep -c audit:'; dmesg | grep -c audit:
"""
_HIDE = """
echo '$ insmod intruder.ko'; insmod /root/intruder.ko || exit
echo '$ dmesg | grep -c audit:'; dmesg | grep -c audit:
echo '$ dmesg | tail -3'; dmesg | tail -3 | cut -c1-80
cat /etc/passwd >/etc/copy
"""
_SHOWN = ("/etc/passwd", "op=privilege", "lport=4444", "intruder.ko")


def show_log(vm: ConfidentialVM, expected: LaunchLog, intruder: bytes, directory: Path) -> None:
    """Of a CVM that was launched with --kci off. Raises VeilError if anything is not as it is to be shown."""
    from veil.remote.log.connect import open_log

    say("the same without code integrity (--kci off), another CVM")
    with own_client(vm, expected) as (client, trust):
        reader = open_log(client, trust)
        say(f"launch digest {expected.digest().hex()}, verified")
        _break_in(vm, reader, intruder, directory)


def _break_in(vm: ConfidentialVM, reader: LogReader, intruder: bytes, directory: Path) -> None:
    """Audit rules, a break-in, a kernel that is no longer its own; and the evidence."""
    from veil.formats.log import EntryKind, parse_records
    from veil.remote.log.audit_rules import default_rules, load_rules
    from veil.remote.log.folder import LogFolder

    say("$ veil logs rules")
    load_rules(reader, default_rules(), wait=vm.wait)
    say("the kernel says that it has loaded the rules")
    say("somebody breaks in, and writes to /etc/passwd; then loads a module that hides it")
    in_guest(vm, _BREAK_IN)
    put(vm, "intruder.ko", intruder, directory)
    handed_over = _records_handed_over(vm)
    in_guest(vm, _HIDE)
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


def _records_handed_over(vm: ConfidentialVM) -> int:
    said = re.search(rb"\brecords (\d{1,18})\b", vm.run(["cat", "/dev/veil"]).stdout)
    if said is None:
        raise VeilError("the guest's driver does not say how many records it has handed over")
    return int(said[1])


def _verify(folder: LogFolder, moment: int) -> None:
    from veil.cli.log.verify import verify

    verify.main(["--to", str(folder.path), "--untrusted-from", str(moment)], standalone_mode=False)
