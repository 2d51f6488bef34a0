# SPDX-License-Identifier: GPL-2.0-or-later
"""The demonstration's first part: VeilS-KCI runs a module of the distribution's, and not the intruder's."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from veil.cli.demo.guest import in_guest, put, show_attestation
from veil.cli.kci.commands import status_lines
from veil.cli.output import say
from veil.cli.own_cvm import own_client
from veil.errors import VeilError

if TYPE_CHECKING:
    from veil.cvm import ConfidentialVM
    from veil.formats.launch_digest import LaunchLog
    from veil.formats.log import LogEntry

__all__ = ["show_code"]

_MODULE, _INTRUDER = "loop", "intruder"
_LOAD = f"""
echo '$ insmod {_MODULE}.ko'; insmod /root/{_MODULE}.ko && grep '^{_MODULE} ' /proc/modules
echo '$ insmod {_INTRUDER}.ko'
insmod /root/{_INTRUDER}.ko 2>&1 && echo 'the intruder is in the kernel'
dmesg | grep 'module {_INTRUDER}' | tail -1
true
"""


def show_code(vm: ConfidentialVM, expected: LaunchLog, intruder: bytes, directory: Path) -> None:
    """Of a CVM that was launched with --kci on. Raises VeilError if anything is not as it is to be shown."""
    from veil.formats.kci import KCI_GUID
    from veil.formats.kci_status import KciStatus, UserCall
    from veil.formats.log import LOG_GUID
    from veil.remote import attest
    from veil.remote.log.reader import LogReader

    with own_client(vm, expected) as (client, trust):
        attested = attest(client, trust)
        attested.raise_for_failure()
        show_attestation(attested)
        for name, data in vm.kernel_modules([_MODULE]):
            put(vm, f"{name}.ko", data, directory)
        put(vm, f"{_INTRUDER}.ko", intruder, directory)
        say("somebody who is root loads a module of Debian's, and then one of their own, which hides what they do")
        in_guest(vm, _LOAD)
        say("$ veil kci status")
        status = KciStatus.parse(client.request(KCI_GUID, UserCall.STATUS))
        for line in status_lines(status):
            say(line)
        running = {module.name for module in status.modules}
        if status.locked_ns is None or _MODULE not in running or _INTRUDER in running or not status.refused:
            raise VeilError("the kernel does not run what it was to run")
        say("$ veil logs fetch")
        reader = LogReader(client, attested.service(LOG_GUID, "VeilS-LOG"))
        told = [words for entry in reader.fetch(reader.head()) for words in _words(entry)]
    for words in told:
        say(words)
    if not any(hashlib.sha256(intruder).hexdigest() in words for words in told):
        raise VeilError("the log does not say that the intruder's module was refused")


def _words(entry: LogEntry) -> list[str]:
    """What VeilS-KCI says in the log of lock-down, of the module, and of what was refused (twice: so often insmod
    tries)."""
    from veil.formats.kci_status import CodeEvent, CodeWord
    from veil.formats.log import EntryKind, ServiceWord
    from veil.formats.printable import printable

    if entry.kind != EntryKind.WORD:
        return []
    word = CodeWord.parse(ServiceWord.parse(entry.body).body)
    if word.event is CodeEvent.LOCKED or word.detail.get("name") == _MODULE or word.trouble:
        return [f"  entry {entry.sequence}: {printable(word.words)}"]
    return []
