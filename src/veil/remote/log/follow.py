# SPDX-License-Identifier: GPL-2.0-or-later
"""Follow a log: have its entries on one's own disk soon after they are made, and before that in no one else's hands."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from veil.formats.log import Head, LogEntry
from veil.remote.log.folder import LogFolder
from veil.remote.log.reader import LogReader

__all__ = ["INTERVAL_SECONDS", "follow_log"]

#: Between two looks. Each costs the CVM one signed head, so that a follower's work for it is bounded by this.
INTERVAL_SECONDS = 0.1
#: The state is written with entries, and as often without any: it says when the log was last seen.
_STATE_SECONDS = 1.0


def follow_log(
    reader: LogReader,
    folder: LogFolder,
    *,
    interval: float = INTERVAL_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[Head, list[LogEntry]]]:
    """Look without end, `interval` seconds apart; yields each head with the entries that are new in it.

    When they are yielded they are verified and on the disk. Hold the folder's lock. Raises VerificationFailed,
    RemoteError.
    """
    kept = None
    while True:
        head = reader.head()
        entries = list(reader.fetch(head))
        now = clock()
        if entries or kept is None or now - kept >= _STATE_SECONDS:
            folder.add(entries, reader.state)
            kept = now
        yield head, entries
        sleep(interval)
