# SPDX-License-Identifier: GPL-2.0-or-later
"""What a running CVM looks like from above: domains, VMSAs, and what each VMPL may do with memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from veil.formats.domains import Domain
from veil.formats.page_sizes import PAGE_SIZE
from veil.snp.rmp import EntryFlag, Permission

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from veil.cvm import ConfidentialVM

__all__ = ["Inspection", "LevelPages", "VmsaInfo", "inspect_cvm", "ram_table"]

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
class Inspection:
    """Page counts are of 4 KiB pages."""

    memory: int
    launch_digest: str
    vmsas: list[VmsaInfo]
    levels: list[LevelPages]
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
    for vmpl in range(4):
        may = permissions[:, vmpl][validated]
        bits = (Permission.R, Permission.W, Permission.UX, Permission.SX)
        counts = [int(np.count_nonzero(may & bit)) for bit in bits]
        levels.append(LevelPages(vmpl, _LABELS[vmpl], *counts))
    raw = machine.rmp.entries["flags"]
    return Inspection(
        memory=machine.memory_size,
        launch_digest=machine.secure_processor.measurement.hex(),
        vmsas=vmsas,
        levels=levels,
        pages=len(table),
        shared=int(np.count_nonzero((flags & EntryFlag.ASSIGNED) == 0)),
        assigned=int(np.count_nonzero(flags & EntryFlag.ASSIGNED)),
        validated=int(np.count_nonzero(validated)),
        vmsa_pages=int(np.count_nonzero(flags & EntryFlag.VMSA)),
        large_entries=int(np.count_nonzero(raw & EntryFlag.SIZE_2M)),
    )
