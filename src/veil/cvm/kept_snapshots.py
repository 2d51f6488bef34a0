# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots of CVMs: beside the machine a file has the configuration and the host's state. And those that are kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from veil.cache import Cache, cache_key
from veil.cvm.configuration import Configuration
from veil.cvm.disks import WRITE, Disk
from veil.cvm.networks import Network
from veil.cvm.plain_values import from_plain, to_plain
from veil.errors import VeilError
from veil.host import Hypervisor, RunResult, RunState
from veil.image.hosted_programs import hosted_programs
from veil.image.services_image import ServicesImage
from veil.installation import endorsement
from veil.private_files import require_private
from veil.snp import HOSTED_VMPLS, Machine, SnpError

__all__ = ["KeptSnapshots", "SavedCvm", "read_cvm", "with_disks", "with_network", "write_cvm"]

_CONFIGURATION, _HOST = "configuration", "host"
_FOLDER = "snapshots"
_MAX_SNAPSHOTS = 8
#: Neither makes or runs a guest: a change there is no reason to boot again.
_NOT_IN_SNAPSHOTS = ("cli", "remote", "testing.py")


@dataclass(frozen=True)
class SavedCvm:
    """What a file holds: a machine, which is the caller's to close; how it was configured; its host's state."""

    machine: Machine
    configuration: Configuration
    host: Any


def write_cvm(path: Path, machine: Machine, hypervisor: Hypervisor, configuration: Configuration) -> None:
    """Write a CVM to a file, whole or not at all, once it can be; raises VeilError."""
    if configuration.monitor:
        _let_monitor_finish(hypervisor)
    sections = {_HOST: json.dumps(to_plain(hypervisor.dump())).encode(), _CONFIGURATION: configuration.pack()}
    try:
        machine.save(path, sections)
    except SnpError as error:
        raise VeilError(str(error)) from error


def _let_monitor_finish(hypervisor: Hypervisor) -> None:
    """Its state and the services' are whole only between two calls: run on until no VCPU is in them."""

    def at_rest() -> bool:
        return all(vcpu.vmpl not in HOSTED_VMPLS or vcpu.state != RunState.RUNNABLE for vcpu in hypervisor.vcpus)

    if not at_rest() and hypervisor.run(until=at_rest, timeout=10.0) != RunResult.DONE:
        raise VeilError("the monitor did not come to rest; no snapshot was made")


def read_cvm(path: Path, services: ServicesImage | None) -> SavedCvm:
    """A CVM from a file, whose services are `services`' program, with settings of their own, or none.

    Raises VeilError in one line, whatever the file holds.
    """
    try:
        machine, sections = Machine.restore(path, endorsement=endorsement, programs=hosted_programs(services))
    except SnpError as error:
        raise VeilError(str(error)) from error
    try:
        configuration = Configuration.parse(sections[_CONFIGURATION])
        _require_program(configuration.services, services)
        _require_consistent(configuration, machine)
        machine.runs_hosted = configuration.monitor
        host = from_plain(json.loads(sections[_HOST]))
    except VeilError as error:
        machine.close()
        raise VeilError(f"{path} is not a snapshot of a CVM: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        machine.close()
        raise VeilError(f"{path} is not a snapshot of a CVM: {error!r:.100}") from error
    except BaseException:
        machine.close()
        raise
    return SavedCvm(machine, configuration, host)


def with_disks(saved: Configuration, disks: Sequence[Disk | str]) -> Configuration:
    """A saved configuration with the disks that its user has named; raises VeilError if it had others."""
    named = tuple(Disk.parse(item) if isinstance(item, str) else item for item in disks)
    kinds = [[(disk.mode, disk.image is None, disk.size) for disk in many] for many in (saved.disks, named)]
    if kinds[0] != kinds[1]:
        had, given = (", ".join(map(str, many)) or "none" for many in (saved.disks, named))
        raise VeilError(f"the snapshot's guest has these disks, to be named with `disks`: {had}; not: {given}")
    return replace(saved, disks=named)


def with_network(saved: Configuration, network: Network | str | None) -> Configuration:
    """A saved configuration with the network that its user has named; raises VeilError if it had one and now has none,
    or the other way round."""
    named = Network.parse(network) if isinstance(network, str) else network
    if (saved.network is None) != (named is None):
        had = f"had the network {saved.network}: name one" if named is None else "had no network, and gets none"
        raise VeilError(f"the snapshot's guest {had} (`network`)")
    return replace(saved, network=named)


def _require_program(saved: ServicesImage | None, allowed: ServicesImage | None) -> None:
    """A file does not choose which of the installed programs runs: only who restores it does."""
    if saved is None or (allowed is not None and (saved.entry, saved.packages) == (allowed.entry, allowed.packages)):
        return
    raise VeilError(f"it wants to run {saved.entry!r:.100}, which may not be resumed here")


def _require_consistent(configuration: Configuration, machine: Machine) -> None:
    """What the machine knows of itself must not be said otherwise."""
    processor = machine.secure_processor
    said = {
        "memory": (configuration.memory, machine.memory_size),
        "host data": (configuration.host_data, processor.host_data),
        "report version": (configuration.report_version, processor.report_version),
        "set of processor features": (configuration.features, machine.cpu_features),
    }
    # An IGVM file brings its own.
    if configuration.igvm is None:
        said |= {
            "firmware": (configuration.firmware is not None, machine.firmware_size > 0),
            "policy": (configuration.policy, processor.policy),
        }
    for name, (configured, real) in said.items():
        if configured != real:
            raise VeilError(f"its configuration says another {name} than its machine has")


class KeptSnapshots:
    """Snapshots in the cache, by configuration and all that goes in beside it; the most recently used are kept."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def place(self, configuration: Configuration, ingredients: Mapping[str, str] | None) -> Path | None:
        """Where the snapshot of this very CVM is or goes, made from `ingredients` (`Assembly.ingredients`).

        None while a part of the image is not at hand, and for a guest that changes a disk's image: it would not be as
        in the snapshot the next time.
        """
        if ingredients is None or any(disk.mode == WRITE for disk in configuration.disks):
            return None
        key = cache_key(configuration.key(), repr(sorted(ingredients.items())), _source_digest())
        return self._cache.directory(_FOLDER) / f"{key}.snapshot"

    def read(self, path: Path, configuration: Configuration) -> SavedCvm:
        """The CVM at a `place`; raises VeilError, also for one that was configured otherwise, and PermissionError."""
        require_private(path)
        saved = read_cvm(path, configuration.services)
        if saved.configuration != configuration:
            saved.machine.close()
            raise VeilError("it is of another configuration")
        with suppress(OSError):
            os.utime(path)
        return saved

    @staticmethod
    def drop(path: Path) -> None:
        """Away with one that cannot be used."""
        with suppress(OSError):
            path.unlink()

    def prune(self) -> None:
        """Only the most recently used stay."""
        found = self._cache.directory(_FOLDER).glob("*.snapshot")
        kept = sorted(found, key=lambda item: item.stat().st_mtime, reverse=True)
        for old in kept[_MAX_SNAPSHOTS:]:
            old.unlink(missing_ok=True)


def _source_digest() -> str:
    """What of the package makes and runs a guest, scripts too: another version's snapshot is not this one's."""
    digest = hashlib.sha256()
    for name, path in sorted(_sources(os.fspath(Path(__file__).parents[1]))):
        with open(path, "rb") as file:
            content = file.read()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _sources(root: str) -> Iterator[tuple[str, str]]:
    """Name and path of each. Every start of a CVM goes this way: strings take a tenth of the time of `Path` objects."""
    for folder, folders, files in os.walk(root):
        if folder == root:
            folders[:] = [name for name in folders if name not in _NOT_IN_SNAPSHOTS]
            files = [name for name in files if name not in _NOT_IN_SNAPSHOTS]
        for name in files:
            path = os.path.join(folder, name)
            if not name.endswith(".pyc") and os.path.isfile(path):
                yield path[len(root) :], path
