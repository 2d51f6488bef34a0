# SPDX-License-Identifier: GPL-2.0-or-later
"""Copies of one booted guest that differ in audit and driver alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.audit.programs import PREPARE, RULES, program_files
from bench.guests import ENVIRONMENT
from veil import installation
from veil.cache import Cache
from veil.cvm import ConfidentialVM
from veil.formats.log import EntryKind, parse_records
from veil.formats.log_settings import LogSettings
from veil.image.services_image import protected_services
from veil.remote import ChannelClient, Policy, Trust, TrustedRoots
from veil.remote.log.connect import open_log
from veil.remote.log.reader import LogState

__all__ = ["BARE", "IDLE", "LogGuest", "Setup", "Totals", "boot_once"]

MEMORY = "768M"
_LOG_MEMORY = 64 << 20


@dataclass(frozen=True)
class Setup:
    """How a guest is set up: with the driver, and with it VeilS-LOG, or without; rules by name, or no audit."""

    driver: bool
    rules: str | None = None

    def __str__(self) -> str:
        audit = f"audit with the rules {self.rules!r}" if self.rules else "no audit"
        return f"{audit}, {'driver' if self.driver else 'no driver'}"


BARE, IDLE = Setup(driver=False), Setup(driver=True)


@dataclass(frozen=True)
class Totals:
    """What the log got."""

    records: int
    calls: int


def boot_once(path: Path) -> None:
    """Boot a guest with the programs, prepare it, and write its snapshot."""
    services = protected_services(LogSettings(memory=_LOG_MEMORY, full="halt"))
    with ConfidentialVM(MEMORY, files=program_files(Cache()), services=services, fresh=True) as vm:
        _check(vm.run(["sh", "-c", PREPARE], env=ENVIRONMENT).exit_status, "preparing the guest")
        vm.snapshot(path)


def _check(status: int, what: str) -> None:
    if status:
        raise RuntimeError(f"{what} ended with status {status}")


class LogGuest:
    """One copy."""

    def __init__(self, path: Path, setup: Setup) -> None:
        self.setup = setup
        self.vm = ConfidentialVM.restore(path)
        self._known: LogState | None = None
        if not setup.driver:
            self.run(["rmmod", "veil"])
        if setup.rules:
            load = "umask 077; cat >/root/rules; auditctl -R /root/rules >/dev/null"
            loaded = self.vm.run(["sh", "-c", load], stdin=RULES[setup.rules], env=ENVIRONMENT)
            _check(loaded.exit_status, f"auditctl ({loaded.stderr.decode()!r})")

    def run(self, argv: Sequence[str]) -> float:
        """Processor seconds of the thread that is the host and the core, for a command, which must end well.

        Not of the clock: other work on the computer would count. None of the commands ever waits.
        """
        start = time.thread_time()
        result = self.vm.run(argv, env=ENVIRONMENT)
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
            reader = open_log(client, Trust(policy=policy, roots=roots), known=self._known)
            kinds = (EntryKind.RECORDS,)
            count = sum(len(parse_records(entry.body)) for entry in reader.fetch() if entry.kind in kinds)
            reader.acknowledge()
            self._known = reader.state
        return count

    def close(self) -> None:
        """End it."""
        self.vm.close()
