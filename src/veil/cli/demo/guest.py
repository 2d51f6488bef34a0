# SPDX-License-Identifier: GPL-2.0-or-later
"""What the parts of the demonstration do with a CVM: run scripts in it, put files there, show that it is attested."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from veil.cli.output import raw, say
from veil.errors import VeilError
from veil.private_files import write_new

if TYPE_CHECKING:
    from veil.cvm import ConfidentialVM
    from veil.remote import Attested

__all__ = ["in_guest", "put", "show_attestation"]


def in_guest(vm: ConfidentialVM, script: str) -> None:
    """Run a script whose output is ours. Raises VeilError if it fails."""
    result = vm.run(["/bin/sh", "-c", script], stdout=lambda data: raw(1, data), stderr=lambda data: raw(2, data))
    if result.exit_status:
        raise VeilError(f"the guest's script ended with status {result.exit_status}")


def put(vm: ConfidentialVM, name: str, data: bytes, directory: Path) -> None:
    """A file into the guest's /root."""
    place = directory / name
    if not place.exists():
        write_new(place, data)
    vm.copy_in(place, f"/root/{name}")


def show_attestation(outcome: Attested) -> None:
    """As `veil attest --software` does, in short."""
    say("$ veil attest --software")
    for name in ("freshness", "channel key", "report signature", "measurement", "VMPL"):
        words = next(check.words for check in outcome.checks if check.name == name)
        say(f"ok    {name:<16}  {words}")
    say(f"verified ({len(outcome.checks)} checks); machine: {outcome.machine}")
