# SPDX-License-Identifier: GPL-2.0-or-later
"""What a running CVM looks like from above: domains, VMSAs, and what each VMPL may do with memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from veil.formats.domains import KERNEL_VMPL, MONITOR_VMPL, VMPLS, Domain
from veil.formats.page_sizes import PAGE_SIZE
from veil.snp.rmp import EntryFlag, Permission

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from veil.cvm import ConfidentialVM

__all__ = [
    "Inspection",
    "LevelPages",
    "RightsPages",
    "SupervisorCode",
    "VmsaInfo",
    "inspect_cvm",
    "kernel_rights",
    "ram_table",
    "supervisor_code",
]

_BITS = (Permission.R, Permission.W, Permission.UX, Permission.SX)
_ALL = int(Permission.ALL)
_LABELS = {domain.vmpl: domain.label for domain in Domain}


@dataclass(frozen=True)
class VmsaInfo:
    """A VCPU context that the host has."""

    vcpu: int
    vmpl: int
    domain: str
    gpa: int
    current: bool
    hosted: bool


@dataclass(frozen=True)
class LevelPages:
    """How many 4 KiB pages a VMPL may read, write, and execute in user and in supervisor mode."""

    vmpl: int
    domain: str
    read: int
    write: int
    execute_user: int
    execute_supervisor: int


@dataclass(frozen=True)
class RightsPages:
    """How many pages the kernel's VMPL has exactly these rights on."""

    pages: int
    read: bool
    write: bool
    execute_user: bool
    execute_supervisor: bool


@dataclass(frozen=True)
class SupervisorCode:
    """What the kernel can execute at CPL 0 if it maps it: the RMP's word, whatever its page tables say."""

    pages: int
    writable: int
    """of them: what the kernel writes there it can run"""
    ranges: list[tuple[int, int]]
    """address and bytes of each piece, in the order of addresses"""

    @property
    def locked(self) -> bool:
        """Can nothing be executed that could be written?"""
        return not self.writable


@dataclass(frozen=True)
class Inspection:
    """Page counts are of 4 KiB pages."""

    memory: int
    launch_digest: str
    vmsas: list[VmsaInfo]
    levels: list[LevelPages]
    kernel_vmpl: int
    kernel_rights: list[RightsPages]
    supervisor_code: SupervisorCode
    pages: int
    shared: int
    assigned: int
    validated: int
    vmsa_pages: int
    large_entries: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def ram_table(vm: ConfidentialVM) -> NDArray[Any]:
    """The RMP's word on each 4 KiB page of RAM, in the order of addresses, without the hole below 4 GiB."""
    table = vm.machine.rmp.effective()
    return np.concatenate([table[gpa // PAGE_SIZE : (gpa + size) // PAGE_SIZE] for gpa, size in vm.machine.ram_ranges])


def kernel_rights(permissions: NDArray[np.uint8]) -> list[RightsPages]:
    """From a level's permissions for each page: those that there are, the most frequent first."""
    found, counts = np.unique(permissions & _ALL, return_counts=True)
    rights = [
        RightsPages(count, *(bool(value & bit) for bit in _BITS))
        for value, count in zip(found.tolist(), counts.tolist(), strict=True)
    ]
    return sorted(rights, key=lambda item: -item.pages)


def supervisor_code(permissions: NDArray[np.uint8], ram_ranges: Iterable[tuple[int, int]]) -> SupervisorCode:
    """From the same, for each page of RAM in the order of addresses; pages that are not validated have none."""
    executable = (permissions & Permission.SX) != 0
    ranges = []
    first = 0
    for gpa, size in ram_ranges:
        count = size // PAGE_SIZE
        edges = np.flatnonzero(np.diff(np.pad(executable[first : first + count], 1).astype(np.int8))).reshape(-1, 2)
        ranges += [(gpa + begin * PAGE_SIZE, (end - begin) * PAGE_SIZE) for begin, end in edges.tolist()]
        first += count
    writable = executable & ((permissions & Permission.W) != 0)
    return SupervisorCode(int(np.count_nonzero(executable)), int(np.count_nonzero(writable)), ranges)


def inspect_cvm(vm: ConfidentialVM) -> Inspection:
    """Look at a running CVM, between two of its instructions."""
    machine = vm.machine
    table = ram_table(vm)
    flags, permissions = table["flags"], table["perms"]
    validated = (flags & EntryFlag.VALIDATED) != 0
    vmsas = []
    for vcpu in vm.hypervisor.vcpus:
        for vmpl, context in sorted(vcpu.contexts.items()):
            gpa = context.vmcb.vmsa_pa
            vmsas.append(
                VmsaInfo(
                    vcpu.index,
                    vmpl,
                    _LABELS[vmpl] if vm.has_monitor else "kernel",
                    gpa,
                    vcpu.current is context,
                    machine.hosted_program(gpa) is not None,
                )
            )
    levels = []
    for vmpl in range(VMPLS):
        may = permissions[:, vmpl][validated]
        counts = [int(np.count_nonzero(may & bit)) for bit in _BITS]
        levels.append(LevelPages(vmpl, _LABELS[vmpl], *counts))
    raw = machine.rmp.entries["flags"]
    kernel_vmpl = KERNEL_VMPL if vm.has_monitor else MONITOR_VMPL
    kernel = permissions[:, kernel_vmpl]
    return Inspection(
        memory=machine.memory_size,
        launch_digest=machine.secure_processor.measurement.hex(),
        vmsas=vmsas,
        levels=levels,
        kernel_vmpl=kernel_vmpl,
        kernel_rights=kernel_rights(kernel[validated]),
        supervisor_code=supervisor_code(np.where(validated, kernel, 0), machine.ram_ranges),
        pages=len(table),
        shared=int(np.count_nonzero((flags & EntryFlag.ASSIGNED) == 0)),
        assigned=int(np.count_nonzero(flags & EntryFlag.ASSIGNED)),
        validated=int(np.count_nonzero(validated)),
        vmsa_pages=int(np.count_nonzero(flags & EntryFlag.VMSA)),
        large_entries=int(np.count_nonzero(raw & EntryFlag.SIZE_2M)),
    )
