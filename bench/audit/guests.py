# SPDX-License-Identifier: GPL-2.0-or-later
"""Copies of one booted guest that differ in audit and driver alone."""

from __future__ import annotations

import enum
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.audit.programs import PREPARE, program_files
from veil import installation
from veil.cache import Cache
from veil.cvm import ConfidentialVM
from veil.formats.log import LOG_GUID, EntryKind, parse_records
from veil.launch_image import PROTECTED_SERVICES, ServicesImage
from veil.remote import ChannelClient, Policy, TrustedRoots, attest
from veil.remote.log import LogReader, LogState

__all__ = ["LogGuest", "Totals", "Way", "boot_once"]

MEMORY = "768M"
_LOG_MEMORY = 64 << 20
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}


class Way(enum.Enum):
    """How a guest is set up."""

    BARE = "no audit, no driver"
    IDLE = "no audit, driver"
    AUDIT = "audit"
    AGAIN = "audit, a second guest"
    LOG = "audit and VeilS-LOG"


@dataclass(frozen=True)
class Totals:
    """What the log got."""

    records: int
    calls: int


def _services() -> ServicesImage:
    settings = {"log": {"memory": _LOG_MEMORY, "full": "halt"}}
    return ServicesImage(PROTECTED_SERVICES.entry, PROTECTED_SERVICES.packages, settings, memory=_LOG_MEMORY)


def boot_once(path: Path) -> None:
    """Boot a guest with the programs, prepare it, and write its snapshot."""
    with ConfidentialVM(MEMORY, files=program_files(Cache()), services=_services(), fresh=True) as vm:
        _check(vm.run(["sh", "-c", PREPARE], env=_ENVIRONMENT).exit_status, "preparing the guest")
        vm.snapshot(path)


def _check(status: int, what: str) -> None:
    if status:
        raise RuntimeError(f"{what} ended with status {status}")


class LogGuest:
    """One copy."""

    def __init__(self, path: Path, way: Way, rules: bytes) -> None:
        self.way = way
        self.vm = ConfidentialVM.restore(path)
        self._known: LogState | None = None
        if way in (Way.BARE, Way.AUDIT, Way.AGAIN):
            self.run(["rmmod", "veil"])
        if way in (Way.AUDIT, Way.AGAIN, Way.LOG):
            load = "umask 077; cat >/root/rules; auditctl -R /root/rules >/dev/null"
            _check(self.vm.run(["sh", "-c", load], stdin=rules, env=_ENVIRONMENT).exit_status, "auditctl")

    def run(self, argv: Sequence[str]) -> float:
        """Processor seconds of the thread that is the host and the core, for a command, which must end well.

        Not of the clock: other work on the computer would count. None of the commands ever waits.
        """
        start = time.thread_time()
        result = self.vm.run(argv, env=_ENVIRONMENT)
        seconds = time.thread_time() - start
        _check(result.exit_status, " ".join(argv))
        return seconds

    def totals(self) -> Totals:
        """The driver's counts since it was loaded."""
        words = self.vm.run(["cat", "/dev/veil"]).stdout.split()
        if int(words[words.index(b"lost") + 1]):
            raise RuntimeError("the driver lost records")
        return Totals(int(words[words.index(b"records") + 1]), int(words[words.index(b"calls") + 1]))

    def collect(self) -> int:
        """Fetch, verify and acknowledge; how many records there were. A user's work, and no part of any figure."""
        roots = TrustedRoots.amd().with_software_root(installation.software_root())
        policy = Policy(measurement=(self.vm.machine.secure_processor.measurement,))
        with ChannelClient(self.vm.user_transport(), identity=installation.user_key()) as client:
            attested = attest(client, policy=policy, roots=roots)
            attested.raise_for_failure()
            reader = LogReader(client, attested.services[LOG_GUID], known=self._known)
            kinds = (EntryKind.RECORDS,)
            count = sum(len(parse_records(entry.body)) for entry in reader.fetch() if entry.kind in kinds)
            reader.acknowledge()
            self._known = reader.state
        return count

    def close(self) -> None:
        """End it."""
        self.vm.close()
