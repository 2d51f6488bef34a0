# SPDX-License-Identifier: GPL-2.0-or-later
"""The contexts of VMPL 2 that a host may run: one for each thread of each enclave, on whichever VCPU.

VeilMon registers them by AP creation; a kernel at VMPL 3 names one by its VMSA when it wants it run
(`veil.formats.ghcb.run_context_request`). What VeilMon did not register is not run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from veil.formats.domains import ENCLAVE_VMPL
from veil.formats.ghcb import LEAVE_ENCLAVE
from veil.formats.page_sizes import PAGE_SIZE
from veil.host.errors import HostError
from veil.host.vcpu import Context

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["EnclaveContext", "EnclaveContexts"]

#: under a kernel of VMPL 3


class EnclaveContext(Context):
    """A VMSA of VMPL 2 with its VMCB. It runs in the place of a VCPU's kernel, and may be left at any instruction."""

    __slots__ = ()

    is_enclave = True

    def __init__(self, vmcb: Any, vmsa: int) -> None:
        super().__init__(ENCLAVE_VMPL, vmcb, vmsa)
        vmcb.ghcb_gpa = LEAVE_ENCLAVE

    def keep_event(self) -> None:
        """Not to be repeated by EVENTINJ, with restricted injection: the instruction is, and raises it again."""


class EnclaveContexts:
    """Those of one guest, by their VMSAs."""

    def __init__(self, new_vmcb: Callable[[], Any], switches: Any) -> None:
        """`switches` (`veil.snp.domain_switches.DomainSwitches`) learns of each."""
        self._new_vmcb = new_vmcb
        self._switches = switches
        self._contexts: dict[int, EnclaveContext] = {}

    def __bool__(self) -> bool:
        return bool(self._contexts)

    def get(self, vmsa: int) -> EnclaveContext | None:
        """The context with this VMSA, if it is registered."""
        return self._contexts.get(vmsa)

    def add(self, vmsa: int) -> None:
        """Register one; again: as it was before it first ran."""
        context = self._contexts[vmsa] = EnclaveContext(self._new_vmcb(), vmsa)
        self._switches.put(vmsa, context.vmcb)

    def drop(self, vmsa: int) -> EnclaveContext | None:
        """Forget it; returns what there was."""
        self._switches.put(vmsa, None)
        return self._contexts.pop(vmsa, None)

    def touches(self, gpa: int, length: int) -> bool:
        """Is the VMSA of any of them in this range?"""
        if length <= PAGE_SIZE:
            return gpa & -PAGE_SIZE in self._contexts or gpa + length - 1 & -PAGE_SIZE in self._contexts
        return any(gpa - PAGE_SIZE < vmsa < gpa + length for vmsa in self._contexts)

    def dump(self) -> list[dict[str, int]]:
        """What the VMCBs hold of contexts that were left in the middle of something."""
        return [
            {
                "vmsa": vmsa,
                "interrupt_shadow": context.vmcb.interrupt_shadow,
                "event_inj": context.vmcb.event_inj,
                "nrip": context.vmcb.nrip,
            }
            for vmsa, context in self._contexts.items()
        ]

    def load(self, state: Any) -> None:
        try:
            for vmsa in list(self._contexts):
                self.drop(vmsa)
            for item in state:
                self.add(int(item["vmsa"]))
                vmcb = self._contexts[int(item["vmsa"])].vmcb
                vmcb.interrupt_shadow, vmcb.event_inj, vmcb.nrip = (
                    int(item[name]) for name in ("interrupt_shadow", "event_inj", "nrip")
                )
        except (KeyError, TypeError, ValueError) as error:
            raise HostError(f"snapshot: the contexts of VMPL 2 are damaged ({error!r})") from error
