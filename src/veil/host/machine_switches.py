# SPDX-License-Identifier: GPL-2.0-or-later
"""Domain switches between a kernel and contexts of VMPL 2 that this host leaves to the machine (docs/engine.md).

A program in an enclave leaves it for each system call; two ways through Python would cost more than the call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.formats.ghcb import MsrRequest
from veil.snp.exit_codes import ExitCode

if TYPE_CHECKING:
    from veil.host.host import Host
    from veil.host.vcpu import Context, Vcpu

__all__ = ["MachineSwitches"]

#: what each would have been counted as
_COUNTED_AS = (f"exit {ExitCode.VMGEXIT.name}", f"msr {MsrRequest.RUN_VMPL.name}")


class MachineSwitches:
    """One VCPU at a time, for a slice of its."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._before = host.machine.counters.switches

    def begin(self, vcpu: Vcpu) -> bool:
        """A slice of a VCPU begins; may the machine switch? An observer sees each event: then it may not."""
        host = self._host
        kernel = vcpu.contexts.get(host.kernel_vmpl)
        if host.on_event is not None or not host.enclaves or kernel is None:
            return False
        others = [other.current for other in host.vcpus if other is not vcpu]
        held = [other.vmcb.vmsa_pa for other in others if other is not None and other.is_enclave]
        host.switches.aim(kernel.vmcb, held)
        return True

    def left(self, vcpu: Vcpu, vmsa: int) -> Context:
        """The machine has switched, and left this VMSA in the end."""
        host = self._host
        context = vcpu.current = host.enclaves.get(vmsa) or vcpu.contexts[host.kernel_vmpl]
        return context

    def add_to(self, counts: dict[str, int]) -> None:
        """Those that were made since the host was."""
        switched = self._host.machine.counters.switches - self._before
        for name in _COUNTED_AS if switched else ():
            counts[name] = counts.get(name, 0) + switched
