# SPDX-License-Identifier: GPL-2.0-or-later
"""Tools look at a CVM from outside, from before its first VMRUN: they see what neither the guest nor a host can."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from veil.host import Hypervisor
    from veil.snp import Machine

__all__ = ["Tool"]


class Tool(Protocol):
    """A trace, a debugger. Whoever makes it closes it."""

    @property
    def stops(self) -> bool:
        """May the machine stand still for as long as somebody likes? Then nobody waits for it with a clock."""

    def attach(self, machine: Machine, hypervisor: Hypervisor) -> None:
        """There is a machine, booted or restored, and nothing of it has run here yet. Called again for another one, if
        that one came to nothing."""
