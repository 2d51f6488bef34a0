# SPDX-License-Identifier: GPL-2.0-or-later
"""A record's protected path in microseconds: hook, switch, copy and hash, return."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from bench.audit.guests import LogGuest
from veil.formats.domains import KERNEL_VMPL, SERVICE_VMPL
from veil.formats.merkle import MerkleTree, leaf_hash
from veil.services import KernelRequest
from veil.services.log import LogService
from veil.services.protected import ProtectedServices

__all__ = ["PathTimes", "measure_path"]

_READS = 10_000
_ENTRY = 474
_COMMAND = ["dd", "if=/dev/zero", "of=/dev/null", "bs=1", f"count={_READS}"]


@dataclass(frozen=True)
class PathTimes:
    """Microseconds for the records of one system call (three, 450 bytes)."""

    whole: float
    """by how much a system call takes longer with VeilS-LOG than with audit alone"""
    hook: float
    """the driver's: hook, collecting, copying into the request block; the CPU's: leaving and entering the kernel"""
    switch: float
    """the host: from the kernel's VMGEXIT to the services' VMRUN"""
    take: float
    """the services: until the request is copied and its service is called"""
    keep: float
    """the log: sequence number, time, copy into protected memory, hash"""
    answer: float
    """the services: until their VMGEXIT"""
    back: float
    """the host: from there to the kernel's VMRUN"""
    hash: float
    """what of `keep` is hashing the entry and appending it to the tree, measured by itself"""

    def rows(self) -> Iterator[tuple[str, float]]:
        """Names and values."""
        names = {
            "whole": "all of it, in the program's way",
            "hook": "hook, collecting, world switch",
            "switch": "host: switch to VMPL 1",
            "take": "services: copy the request",
            "keep": "log: keep the entry",
            "answer": "services: answer",
            "back": "host: return to VMPL 3",
            "hash": "of that: hash the entry, append it to the tree",
        }
        for field in fields(self):
            yield names[field.name], getattr(self, field.name)


class _Watch:
    """Clocks at the borders of a guest's domains. Each look at the clock costs as much as it did before."""

    def __init__(self, guest: LogGuest) -> None:
        self.times: dict[str, list[int]] = {name: [] for name in ("switch", "take", "keep", "answer", "back")}
        self._machine: Any = guest.vm.machine
        self._vcpu = guest.vm.hypervisor.vcpus[0]
        self._service = _log_service(guest)
        self._vmrun = self._machine.vmrun
        self._request = self._service.kernel_request
        self._left = self._entered = self._kept = 0
        self._last = -1

    def __enter__(self) -> _Watch:
        self._machine.vmrun = self._watched_vmrun
        self._service.kernel_request = self._watched_request  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        del self._machine.vmrun
        del self._service.kernel_request

    def _watched_vmrun(self, vmcb: Any, deadline_ns: int = 0) -> None:
        context = self._vcpu.current
        vmpl = context.vmpl if context is not None else -1
        now = time.perf_counter_ns()
        if (self._last, vmpl) == (KERNEL_VMPL, SERVICE_VMPL):
            self.times["switch"].append(now - self._left)
        elif (self._last, vmpl) == (SERVICE_VMPL, KERNEL_VMPL):
            self.times["back"].append(now - self._left)
        self._entered = time.perf_counter_ns()
        self._vmrun(vmcb, deadline_ns)
        self._left = time.perf_counter_ns()
        if vmpl == SERVICE_VMPL:
            self.times["answer"].append(self._left - self._kept)
        self._last = vmpl

    def _watched_request(self, request: KernelRequest) -> bytes:
        start = time.perf_counter_ns()
        self.times["take"].append(start - self._entered)
        answer = self._request(request)
        self._kept = time.perf_counter_ns()
        self.times["keep"].append(self._kept - start)
        return answer


def _log_service(guest: LogGuest) -> LogService:
    vmsa = guest.vm.hypervisor.vcpus[0].contexts[SERVICE_VMPL].vmcb.vmsa_pa
    program = guest.vm.machine.hosted_program(vmsa)
    assert isinstance(program, ProtectedServices)
    (service,) = [item for item in program.services if isinstance(item, LogService)]
    return service


def _clock_cost() -> float:
    looks = [time.perf_counter_ns() for _ in range(10_000)]
    return statistics.median(after - before for before, after in itertools.pairwise(looks))


def _hash_cost() -> float:
    """Microseconds an entry."""
    tree, entry = MerkleTree(), bytes(_ENTRY)
    start = time.perf_counter()
    for _ in range(_READS):
        tree.append(leaf_hash(entry))
    return (time.perf_counter() - start) / _READS * 1e6


def measure_path(audit: LogGuest, log: LogGuest, *, turns: int) -> PathTimes:
    """A program that does nothing but read and write single bytes, on a guest without and on one with VeilS-LOG."""
    for guest in (audit, log):
        guest.run(_COMMAND)
    whole = []
    for _ in range(turns):
        without, before = audit.run(_COMMAND), log.totals()
        with_log = log.run(_COMMAND)
        # `totals` makes a few records itself, outside of the time.
        calls = log.totals().calls - before.calls
        whole.append((with_log - without) / calls * 1e6)
        log.collect()
    with _Watch(log) as watch:
        log.run(_COMMAND)
    log.collect()
    cost = _clock_cost()
    parts = {name: max(0.0, statistics.median(times) - cost) / 1000 for name, times in watch.times.items()}
    total = statistics.median(whole)
    return PathTimes(total, total - sum(parts.values()), **parts, hash=_hash_cost())
