# SPDX-License-Identifier: GPL-2.0-or-later
"""Takes the kernel's permissions away at random times, and gives each page's back when it is touched.

A host cannot do this (it has no RMPADJUST); the harness does it with VMPL 0's rights, between two VMRUNs.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

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
        self._random = np.random.default_rng(seed)
        self._pages_between = pages_between
        self._permissions = self._rmp.entries["perms"][:, _GUEST]
        #: what pages may do that do not come back by themselves; 0: nothing was taken from this one
        self._denied = np.zeros(self._rmp.pages, dtype=np.uint8)
        self._next = 0

    def start(self) -> None:
        """Revoke for the first time."""
        self._vm.hypervisor.on_npf = self._on_npf
        self._revoke()

    def stop(self) -> None:
        """Give everything back."""
        flags = self._rmp.entries["flags"]
        pages = np.flatnonzero(self._denied)
        # What VeilMon took from the kernel meanwhile (shared pages, VMSAs) is not ours to give back.
        ours = EntryFlag.VALIDATED | EntryFlag.VMSA | EntryFlag.SIZE_2M
        pages = pages[flags[pages] & ours == EntryFlag.VALIDATED]
        self._permissions[pages] = self._denied[pages]
        self._denied[:] = 0
        self._vm.hypervisor.on_npf = None

    def _revoke(self) -> None:
        flags, permissions = self._rmp.entries["flags"], self._permissions
        ready = EntryFlag.ASSIGNED | EntryFlag.VALIDATED
        pages = np.flatnonzero((permissions != 0) & ((flags & (ready | EntryFlag.VMSA)) == ready))
        if self._random.random() < 0.5:
            pages = pages[self._random.random(len(pages)) < 0.5]
        pages = self._split(pages)
        before = np.where(self._denied[pages], self._denied[pages], permissions[pages])
        self._denied[pages] = before
        # Sometimes all, sometimes only writing or executing.
        kept = np.stack((before & 0, before & 0, before & Permission.R, before & ~np.uint8(Permission.W)))
        permissions[pages] = kept[self._random.integers(len(kept), size=len(pages)), np.arange(len(pages))]
        # Into the table itself, as RMPADJUST would: tens of thousands of these would be most of the test. One is real,
        # by which the processor forgets the rights that it knew: those of all pages, since reading ends with it.
        some = int(pages[0])
        permissions[some] = Permission.ALL
        code = self._top.rmpadjust(some * _PAGE, vmpl=_GUEST, permissions=0)
        assert code == RmpResult.SUCCESS, f"{some * _PAGE:#x}: {code.name}"
        self.revocations += 1
        self._next = self.faults + int(self._random.integers(1, self._pages_between, endpoint=True))

    def _split(self, pages: NDArray[np.intp]) -> NDArray[np.intp]:
        """By 4 KiB, so that each page comes back alone."""
        large = pages[(self._rmp.entries["flags"][pages] & EntryFlag.SIZE_2M) != 0]
        for page in large.tolist():
            assert self._vm.machine.host_view().psmash(page * _PAGE) == RmpResult.SUCCESS
        inner = (large[:, None] + np.arange(_LARGE // _PAGE)).ravel()
        return np.union1d(pages, inner)

    def _restore(self, gpa: int) -> None:
        before, self._denied[gpa // _PAGE] = int(self._denied[gpa // _PAGE]), 0
        entry = self._rmp.entry(gpa)
        # As above.
        if entry["flags"] & EntryFlag.VALIDATED and not entry["flags"] & EntryFlag.VMSA:
            self._top.rmpadjust(gpa, vmpl=_GUEST, permissions=before, size=PageSize.SIZE_4K)

    def _on_npf(self, vcpu: int, vmpl: int, gpa: int, info: int) -> bool:
        page = gpa & ~(_PAGE - 1)
        if not info & _DENIED_BY_VMPL or not self._denied[page // _PAGE]:
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
