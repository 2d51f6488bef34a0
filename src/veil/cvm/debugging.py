# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb for a CVM: the host gets a machine that stops for it (`veil.debugger`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from veil.debugger import Context, Debugger, Place
from veil.formats.domains import ENCLAVE_VMPL

if TYPE_CHECKING:
    from veil.host import Hypervisor
    from veil.snp import Machine

__all__ = ["Debugging"]


class Debugging:
    """A tool (`veil.cvm.tools`): listens for gdb as long as there is a machine."""

    stops = True

    def __init__(self, place: Place, *, waits: bool = False, say: Callable[[str], None] = lambda _: None) -> None:
        """`waits`: nothing runs before gdb says so. `say` is told where it is listened."""
        self._place = place
        self._waits = waits
        self._say = say
        self._debugger: Debugger | None = None

    @property
    def address(self) -> str | None:
        """For gdb's `target remote`; None before there is a machine."""
        return self._debugger.address if self._debugger is not None else None

    def attach(self, machine: Machine, hypervisor: Hypervisor) -> None:
        """Raises VeilError if it cannot be listened there."""
        self.close()
        debugger = self._debugger = Debugger(
            machine,
            lambda: _contexts(hypervisor),
            self._place,
            wake=hypervisor.post,
            waits=self._waits,
        )
        hypervisor.machine = debugger.machine
        hypervisor.switches_by_machine = False
        self._say(f"gdb is listened for: target remote {debugger.address}")

    def close(self) -> None:
        """gdb is told that the machine is gone."""
        debugger, self._debugger = self._debugger, None
        if debugger is not None:
            debugger.close()

    def __enter__(self) -> Debugging:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _contexts(hypervisor: Hypervisor) -> list[Context]:
    found = []
    for vcpu in hypervisor.vcpus:
        for vmpl, context in sorted(vcpu.contexts.items()):
            found.append(Context(vcpu.index, vmpl, context.vmcb.vmsa_pa, context is vcpu.current))
        if vcpu.current is not None and vcpu.current.is_enclave:
            found.append(Context(vcpu.index, ENCLAVE_VMPL, vcpu.current.vmcb.vmsa_pa, True))
    return found
