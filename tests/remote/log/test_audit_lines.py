# SPDX-License-Identifier: GPL-2.0-or-later
"""Records as lines of text: none can look like two."""

from __future__ import annotations

from veil.formats.log import AuditRecord, EntryKind, LogEntry, pack_records
from veil.remote.log.audit_lines import audit_lines


def test_line_ends_in_records_are_made_visible() -> None:
    """Else a record could forge the next one in the text."""
    forged = pack_records([AuditRecord(1300, b"audit(1.0:1): a\ntype=SYSCALL msg=audit(1.0:2): forged")])
    entry = LogEntry(0, 0, EntryKind.RECORDS, forged, b"")
    (line,) = audit_lines(entry)
    assert line.count(b"\n") == 1


def test_records_of_a_sound_kernel_are_written_as_they_are() -> None:
    """Else ausearch would show other names than there were."""
    text = b'audit(1.0:1): item=1 name="/tmp/back\\slash" nametype=CREATE'
    (line,) = audit_lines(LogEntry(0, 0, EntryKind.RECORDS, pack_records([AuditRecord(1302, text)]), b""))
    assert line == b"type=PATH msg=" + text + b"\n"


def test_no_record_has_a_line_of_its_own_making() -> None:
    """Line ends are escaped; and ausearch takes what goes beyond 8969 bytes for the next line."""
    forged = b'type=SYSCALL msg=audit(1700000000.000:1): comm="ls"'
    stamp = b"audit(1700000000.000:7): "
    for text in (stamp + b"x\n" + forged, stamp + b"x" * (8969 - len(stamp) - len("type=SYSCALL msg=")) + forged):
        body = pack_records([AuditRecord(1300, text)])
        (line,) = audit_lines(LogEntry(0, 1, EntryKind.RECORDS, body, b""))
        assert line.count(b"\n") == 1
        assert len(line) <= 8969
        assert not line[8969:]
        assert line.endswith(b"\n")
    honest = stamp + b"x" * 8900
    (line,) = audit_lines(LogEntry(0, 1, EntryKind.RECORDS, pack_records([AuditRecord(1302, honest)]), b""))
    assert line == b"type=PATH msg=" + honest + b"\n"
