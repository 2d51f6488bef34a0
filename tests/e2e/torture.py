# SPDX-License-Identifier: GPL-2.0-or-later
"""Takes the kernel's permissions away at random times, and gives each page's back when it is touched.

A host cannot do this (it has no RMPADJUST); the harness does it with VMPL 0's rights, between two VMRUNs.
"""

from __future__ import annotations

import math
import random

import numpy as np

from veil.cvm import ConfidentialVM
from veil.snp import EntryFlag, ExitCode, PageSize, Permission, RmpResult
from veil.snp.layouts import Vmsa

__all__ = ["Torture"]

_GUEST = 3
_PAGE, _LARGE = 4096, 2 << 20
_DENIED_BY_VMPL = 1 << 36


class Torture:
    """Hooks a launched CVM: `start` once the kernel runs."""

    def __init__(self, vm: ConfidentialVM, seed: int, pages_between: int = 600) -> None:
        self.faults = 0
        self.end: float = math.inf
        """When there were that many faults it stops by itself."""
        self.revocations = 0
        self._vm = vm
        self._rmp = vm.machine.rmp
        self._top = vm.machine.view(vmpl=0)
        self._random = random.Random(seed)
        self._pages_between = pages_between
        self._denied: dict[int, int] = {}
        self._next = 0

    def start(self) -> None:
        """Revoke for the first time."""
        self._vm.hypervisor.on_npf = self._on_npf
        self._revoke()

    def stop(self) -> None:
        """Give everything back."""
        for gpa in list(self._denied):
            self._restore(gpa)
        self._vm.hypervisor.on_npf = None

    def _adjust(self, gpa: int, permissions: int) -> None:
        code = self._top.rmpadjust(gpa, vmpl=_GUEST, permissions=permissions)
        assert code == RmpResult.SUCCESS, f"{gpa:#x}: {code.name}"

    def _revoke(self) -> None:
        entries = self._rmp.entries
        flags, permissions = entries["flags"], entries["perms"][:, _GUEST]
        ready = EntryFlag.ASSIGNED | EntryFlag.VALIDATED
        open_pages = np.flatnonzero((permissions != 0) & ((flags & (ready | EntryFlag.VMSA)) == ready))
        everything = self._random.random() < 0.5
        for page in open_pages.tolist():
            if not everything and self._random.random() < 0.5:
                continue
            gpa, before = page * _PAGE, int(permissions[page])
            if flags[page] & EntryFlag.SIZE_2M:
                # By 4 KiB, so that each page comes back alone.
                self._vm.machine.host_view().psmash(gpa)
                for inner in range(gpa, gpa + _LARGE, _PAGE):
                    self._deny(inner, before)
            else:
                self._deny(gpa, before)
        self.revocations += 1
        self._next = self.faults + self._random.randint(1, self._pages_between)

    def _deny(self, gpa: int, before: int) -> None:
        before = self._denied.setdefault(gpa, before)
        # Sometimes all, sometimes only writing or executing.
        self._adjust(gpa, self._random.choice((0, 0, before & Permission.R, before & ~Permission.W)))

    def _restore(self, gpa: int) -> None:
        before = self._denied.pop(gpa)
        entry = self._rmp.entry(gpa)
        # What VeilMon took from the kernel meanwhile (shared pages, VMSAs) is not ours to give back.
        if entry["flags"] & EntryFlag.VALIDATED and not entry["flags"] & EntryFlag.VMSA:
            self._top.rmpadjust(gpa, vmpl=_GUEST, permissions=before, size=PageSize.SIZE_4K)

    def _on_npf(self, vcpu: int, vmpl: int, gpa: int, info: int) -> bool:
        page = gpa & ~(_PAGE - 1)
        if not info & _DENIED_BY_VMPL or page not in self._denied:
            return False
        self.faults += 1
        self._restore(page)
        # As VeilMon does when it has decided: entered next for another reason it must not find a refused access here.
        vmsa = self._vm.hypervisor.vcpus[vcpu].contexts[vmpl].vmcb.vmsa_pa
        self._top.write_u64(vmsa + Vmsa.guest_exit_code.offset, ExitCode.INVALID)
        if self.faults >= self.end:
            self.stop()
        elif self.faults >= self._next:
            self._revoke()
        return True
