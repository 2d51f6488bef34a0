# SPDX-License-Identifier: GPL-2.0-or-later
"""VCPU contexts, which are a debugger's threads: between two VMRUNs everything of one is in its VMSA page."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, NamedTuple

from veil.formats.domains import VMPLS
from veil.snp.layouts import Vmsa

if TYPE_CHECKING:
    from veil.snp import Machine

__all__ = ["Context", "read_vmsa", "write_vmsa"]


class Context(NamedTuple):
    """A VMSA that a host may run."""

    vcpu: int
    vmpl: int
    vmsa: int
    """GPA"""
    current: bool = False
    """Is it what its VCPU runs when it runs?"""

    @property
    def thread(self) -> int:
        """gdb's number; 0 would be any."""
        return 1 + self.vcpu * VMPLS + self.vmpl


def read_vmsa(machine: Machine, gpa: int) -> Vmsa:
    """A copy, whoever may read the page."""
    return Vmsa.from_buffer_copy(machine.memory.mapping, gpa)


def write_vmsa(machine: Machine, gpa: int, vmsa: Vmsa) -> None:
    """Put it back; the next VMRUN takes it."""
    machine.memory.mapping[gpa : gpa + ctypes.sizeof(Vmsa)] = bytes(vmsa)
