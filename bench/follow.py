# SPDX-License-Identifier: GPL-2.0-or-later
"""How soon a follower has an entry: from the kernel's call, by the entry's own time, to the follower's disk."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bench.report import Latency
from veil import installation
from veil.cvm import ConfidentialVM
from veil.remote import ChannelClient, Policy, SocketTransport, Trust, TrustedRoots
from veil.remote.log.connect import open_log
from veil.remote.log.folder import LogFolder
from veil.remote.log.follow import follow_log

__all__ = ["measure_follow"]

_SECONDS = 20.0
#: An audited event every few hundredths of a second.
_LOAD = f"""
auditctl -e 1 >/dev/null
auditctl -a always,exit -F arch=b64 -S execve >/dev/null
timeout {_SECONDS + 3:.0f} sh -c 'while :; do /bin/usleep 30000; done'
"""


def measure_follow(directory: Path) -> Iterator[Latency]:
    """A guest that makes audit records, its host's listener, and a user who follows, by TCP."""
    with ConfidentialVM("256M") as vm:
        listener = vm.listen()
        delays: list[float] = []
        heads: list[float] = []
        follower = threading.Thread(target=_follow, args=(vm, listener.address, directory / "log", delays, heads))
        follower.start()
        try:
            vm.run(["sh", "-c", _LOAD])
        finally:
            listener.close()
            follower.join(30)
    delays.sort()
    yield Latency(f"follower: entry made until on the disk, median of {len(delays)}", statistics.median(delays) * 1e6)
    yield Latency("  99 of 100 within", delays[len(delays) * 99 // 100] * 1e6)
    yield Latency("  longest", delays[-1] * 1e6)
    yield Latency("a look that finds nothing, median (one signed head)", statistics.median(heads) * 1e6)


def _follow(
    vm: ConfidentialVM, address: tuple[str, int], folder: Path, delays: list[float], heads: list[float]
) -> None:
    roots = TrustedRoots.amd().with_software_root(installation.software_root())
    policy = Policy(measurement=(vm.machine.secure_processor.measurement,))
    place = LogFolder(folder)
    with (
        place.lock(),
        ChannelClient(SocketTransport.connect(*address), identity=installation.user_key()) as client,
    ):
        reader = open_log(client, Trust(policy=policy, roots=roots))
        end = time.monotonic() + _SECONDS
        caught_up = False
        for _, entries in follow_log(reader, place):
            now, seen = time.time_ns(), reader.state.seen
            assert seen is not None
            if not entries:
                heads.append((seen.answered_ns - seen.asked_ns) / 1e9)
            elif caught_up:
                delays += [(now - seen.wall_ns(entry.time_ns)) / 1e9 for entry in entries]
            caught_up = True
            if time.monotonic() >= end:
                return
