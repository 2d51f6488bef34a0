# SPDX-License-Identifier: GPL-2.0-or-later
"""What a host leaves to the machine: domain switches between its kernel and contexts of VMPL 2, without Python."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from veil.formats.page_sizes import PAGE_SIZE
from veil.snp._engine import SwitchPolicy
from veil.snp.layouts import Vmcb

__all__ = ["DomainSwitches"]


class DomainSwitches:
    """What a host has the machine do by itself at the exits of one VCPU: who its kernel is, what that may have run.

    VMCBs that stand here must outlive it, or be taken out.
    """

    def __init__(self, pages: int) -> None:
        self._contexts = np.zeros(pages, dtype=np.uint64)
        self.policy = SwitchPolicy(contexts=self._contexts.ctypes.data, pages=pages)
        self.address = ctypes.addressof(self.policy)

    def put(self, vmsa: int, vmcb: Vmcb | None) -> None:
        """A context of VMPL 2 by its VMSA, or that there is none any more."""
        if vmsa // PAGE_SIZE < len(self._contexts):
            self._contexts[vmsa // PAGE_SIZE] = 0 if vmcb is None else ctypes.addressof(vmcb)

    def aim(self, kernel: Vmcb, held: Sequence[int]) -> None:
        """The kernel whose turn it is, and the VMSAs that other VCPUs are in the middle of."""
        policy = self.policy
        policy.kernel = ctypes.addressof(kernel)
        policy.held_count = len(held)
        for index, vmsa in enumerate(held):
            policy.held[index] = vmsa
