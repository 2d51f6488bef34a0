# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries as text: the lines that auditd would have written, for people and for the standard tools."""

from __future__ import annotations

from collections.abc import Iterator

from veil.formats.audit_types import type_name
from veil.formats.errors import FormatError
from veil.formats.log import EntryKind, LogEntry, parse_records

__all__ = ["WITH_RECORDS", "audit_lines"]

#: ausearch and aureport take what goes beyond MAX_AUDIT_MESSAGE_LENGTH (8970, with a zero) for the next line.
_MAX_LINE = 8968
_CUT = b" (cut)"
#: kinds of entries whose bodies are audit records
WITH_RECORDS = (EntryKind.RECORDS, EntryKind.INTENT)


def audit_lines(entry: LogEntry) -> Iterator[bytes]:
    """An entry's records as auditd would have written them; nothing for heartbeats and the service's own words.

    Records come from the kernel, and an attacker in it may choose their bytes: line ends in them are made visible,
    and what no tool would read in one piece is cut, so that no record has a line of its own making. A sound kernel
    writes names with line ends in hexadecimal, backslashes as they are, and no record that long.
    """
    if entry.kind not in WITH_RECORDS:
        return
    try:
        records = parse_records(entry.body)
    except FormatError:
        return
    for record in records:
        text = record.text
        if b"\n" in text or b"\0" in text:
            text = text.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\0", b"\\0")
        line = f"type={type_name(record.type)} msg=".encode() + text
        if len(line) > _MAX_LINE:
            line = line[: _MAX_LINE - len(_CUT)] + _CUT
        yield line + b"\n"
