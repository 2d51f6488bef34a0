# SPDX-License-Identifier: GPL-2.0-or-later
"""A user's side of the log: `veil logs verify` from start to exit, in records a second, and its memory."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bench.report import Rate
from veil.formats.log import ENTRY_HEADER, AuditRecord, EntryKind, Head, LogEntry, pack_records
from veil.formats.merkle import CompactRange, leaf_hash
from veil.remote.log.folder import LogFolder
from veil.remote.log.reader import LogState, Sighting

__all__ = ["measure_log"]

_RECORDS = 500_000
_RUNS = 3
#: The command, which says at its end how much memory it had at most (kB).
_PROGRAM = """
import re
from veil.cli import main
try:
    main()
finally:
    with open("/proc/self/status") as stream, open(2, "w") as out:
        out.write(re.search(r"VmHWM:\\s+(\\d+)", stream.read())[1])
"""
#: What one openat leaves.
_TEXTS = (
    (1300, b"arch=c000003e syscall=257 success=yes exit=3 a0=ffffff9c a1=7ffd1c0f2a10 a2=0 a3=0 items=1 ppid=812 "
     b"pid=813 auid=1000 uid=1000 gid=1000 euid=1000 suid=1000 fsuid=1000 egid=1000 sgid=1000 fsgid=1000 tty=pts0 "
     b'ses=3 comm="cat" exe="/usr/bin/cat" subj=unconfined key="files"'),
    (1307, b'cwd="/home/user"'),
    (1302, b'item=0 name="/etc/hostname" inode=1835 dev=08:01 mode=0100644 ouid=0 ogid=0 rdev=00:00 nametype=NORMAL'),
    (1327, b"proctitle=636174002F6574632F686F73746E616D65"),
    (1320, b""),
)  # fmt: skip


def measure_log(directory: Path) -> Iterator[Rate]:
    """Of a log of half a million audit records, whose signs of life come each second."""
    for name, single in (("as they come, five to an entry", False), ("one to an entry", True)):
        folder = LogFolder(directory / f"log-{single}")
        _fill(folder, single=single)
        seconds, memory = zip(*(_verify(folder) for _ in range(_RUNS)), strict=True)
        yield Rate(f"veil logs verify, audit records {name}", _RECORDS / statistics.median(seconds), "/s")
        yield Rate(f"  memory at most, {name}", max(memory) / 1e6, "MB")


def _fill(folder: LogFolder, *, single: bool) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    tree = CompactRange()
    now = 0

    def entries() -> Iterator[LogEntry]:
        nonlocal now
        for kind, body in _bodies(single=single):
            now += 20_000
            raw = ENTRY_HEADER.pack(tree.size, now, kind, len(body)) + body
            tree.append(leaf_hash(raw))
            yield LogEntry(tree.size - 1, now, kind, body, raw)

    kept = list(entries())
    head = Head(tree.size, 0, now, now, 0, tree.root(), b"")
    signature = key.sign(head.signed_bytes, ec.ECDSA(hashes.SHA256()))
    wall = time.time_ns()
    seen = Sighting(Head(head.size, 0, now, now, 0, head.root, signature), wall, wall)
    with folder.lock():
        folder.add(kept, LogState(public, tree, CompactRange(), seen))


def _bodies(*, single: bool) -> Iterator[tuple[EntryKind, bytes]]:
    yield EntryKind.STARTED, b""
    for serial in range(_RECORDS // len(_TEXTS)):
        if serial % 1000 == 0:
            yield EntryKind.HEARTBEAT, b""
        stamp = b"audit(%d.%03d:%d): " % (1_700_000_000 + serial // 1000, serial % 1000, serial + 40)
        records = [AuditRecord(kind, stamp + text) for kind, text in _TEXTS]
        if single:
            yield from ((EntryKind.RECORDS, pack_records([record])) for record in records)
        else:
            yield EntryKind.RECORDS, pack_records(records)


def _verify(folder: LogFolder) -> tuple[float, int]:
    """Seconds, and bytes of memory at most."""
    command = [sys.executable, "-c", _PROGRAM, "logs", "verify", "--to", str(folder.path)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise RuntimeError(f"veil logs verify ended with {done.returncode}: {done.stderr}")
    return seconds, int(done.stderr) * 1024
