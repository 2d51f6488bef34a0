# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's end is not the machine's: what VeilMon and the services hold can be fetched when the kernel is gone.

A kernel under a monitor can end itself in many ways, by mistake or because it was taken over: power off, reset, a
termination request, a triple fault, a request that cannot be answered, halting for good. Ending the machine with it
would erase the evidence of its last moments, on the request of the one whom it is evidence of. A host that serves
users therefore takes the kernel's VMSAs out of use and runs VMPL 0 and 1 on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.formats.domains import MONITOR_VMPL
from veil.host.errors import GuestError, GuestHung, GuestPanic, GuestPowerOff, GuestReset
from veil.host.vcpu import RunState

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.host.errors import HostError
    from veil.host.host import Host
    from veil.host.vcpu import Vcpu

__all__ = ["KernelEnd"]

#: Ends that name no level. Only the kernel drives the devices that switch off, reset or print, and VeilMon never halts.
_KERNELS_OWN = (GuestPowerOff, GuestReset, GuestPanic, GuestHung)

#: States in which a VCPU's kernel may be left for a more privileged level.
_INTERRUPTIBLE = (RunState.RUNNABLE, RunState.HALTED)


class KernelEnd:
    """Whether the machine outlives its kernel, and whether it has."""

    def __init__(self, host: Host) -> None:
        self._host = host
        #: the switch: off, the machine ends with its kernel
        self.is_outlived = False
        #: told once, with why the kernel ended
        self.on_end: Callable[[HostError], None] | None = None
        #: why the kernel ended, if it did and the machine has outlived it
        self.error: HostError | None = None

    def outlive(self, error: HostError) -> None:
        """The run ended with this error: from here on without the kernel, if it was the kernel's. Else raises it."""
        vcpus, kernel_vmpl = self._host.vcpus, self._host.kernel_vmpl
        kernels = error.vmpl == kernel_vmpl if isinstance(error, GuestError) else isinstance(error, _KERNELS_OWN)
        if not (self.is_outlived and kernel_vmpl and kernels and any(MONITOR_VMPL in vcpu.contexts for vcpu in vcpus)):
            raise error
        for vcpu in vcpus:
            vcpu.drop_vmsa(kernel_vmpl)
        if self.error is None:
            self.error = error
            if self.on_end is not None:
                self.on_end(error)

    def may_enter(self, vcpu: Vcpu, vmpl: int) -> bool:
        """May the host by itself run this level on the VCPU now?

        While the kernel lives, in its place or an enclave's only: VMPL 0 and 1 are not to be left in the middle.
        Afterwards wherever they have nothing to do, as VeilMon waits in an AP reset hold where no kernel is to run.
        """
        if vmpl not in vcpu.contexts:
            return False
        if self.error is not None:
            return vcpu.state != RunState.RUNNABLE
        in_its_place = vcpu.vmpl in (self._host.kernel_vmpl, self._host.enclave_vmpl)
        return in_its_place and vcpu.state in _INTERRUPTIBLE
