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
        self._vmrun = host.machine.vmrun_switching
        self._switches = host.switches
        self._before = host.machine.counters.switches
        self._aimed: Vcpu | None = None

    def begin(self) -> bool:
        """A slice begins; has the machine switches to do? An observer sees each event: then it has none."""
        self._aimed = None
        return self._host.on_event is None and bool(self._host.enclaves)

    def run(self, vcpu: Vcpu, context: Context, deadline_ns: int) -> Context:
        """Run the VCPU's kernel or an enclave, and those that the machine goes on with; what left in the end."""
        if self._aimed is not vcpu:
            self._aim(vcpu)
        vmcb = context.vmcb
        vmsa = self._vmrun(vmcb, self._switches, deadline_ns)
        if vmsa == vmcb.vmsa_pa:
            return context
        host = self._host
        left = vcpu.current = host.enclaves.get(vmsa) or vcpu.contexts[host.guest_vmpl]
        return left

    def _aim(self, vcpu: Vcpu) -> None:
        host = self._host
        others = [other.current for other in host.vcpus if other is not vcpu]
        held = [other.vmcb.vmsa_pa for other in others if other is not None and other.is_enclave]
        host.switches.aim(vcpu.contexts[host.guest_vmpl].vmcb, held)
        self._aimed = vcpu

    def add_to(self, counts: dict[str, int]) -> None:
        """Those that were made since the host was."""
        switched = self._host.machine.counters.switches - self._before
        for name in _COUNTED_AS if switched else ():
            counts[name] = counts.get(name, 0) + switched
