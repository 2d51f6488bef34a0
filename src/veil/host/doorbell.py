# SPDX-License-Identifier: GPL-2.0-or-later
"""The #HV doorbell page: how a level with restricted injection hears of interrupts and NMIs (56421, "#HV Doorbell
Page").

The page is shared memory. PendingEvent, its first two bytes, has the vector (0: none), whether an NMI is pending, and
NoFurtherSignal; bit 0 of the third byte, NoEoiRequired, spares the guest the EOI. The host writes a vector and raises
#HV; the guest takes it by putting 0 there, which is when it is in service: until then another one may take its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from veil.formats.page_sizes import PAGE_SIZE
from veil.snp.layouts import EVENT_EXCEPTION, EVENT_VALID

if TYPE_CHECKING:
    from veil.host.interfaces import HostMemory

__all__ = ["HV_EVENT", "Doorbell"]

#: #HV in EVENTINJ: vector 28, an exception, no error code
HV_EVENT = EVENT_VALID | EVENT_EXCEPTION | 28

_FLAGS, _NO_EOI = 1, 2
#: of the flags
_NMI, _NO_FURTHER_SIGNAL = 1 << 0, 1 << 7


class Doorbell:
    """One context's. A page that is not shared any more rings no more."""

    __slots__ = ("_view", "gpa")

    def __init__(self, view: HostMemory, gpa: int) -> None:
        self._view = view
        self.gpa = gpa

    @property
    def vector(self) -> int:
        """What the guest has not taken yet; 0: nothing."""
        return self._view.read(self.gpa, 1)[0] if self._is_usable() else 0

    def post(self, vmcb: Any, vector: int, *, end: bool) -> None:
        """An interrupt, in place of one that was not taken; `end`: it needs an EOI."""
        if not self._is_usable():
            return
        told = self.vector
        self._view.write(self.gpa + _NO_EOI, bytes([0 if end else 1]))
        self._view.write(self.gpa, bytes([vector]))
        if not told:
            self._signal(vmcb, 0)

    def withdraw(self, vector: int) -> None:
        """It went away before the guest took it."""
        if self.vector == vector:
            self._view.write(self.gpa, b"\0")

    def post_nmi(self, vmcb: Any) -> None:
        """An NMI."""
        if self._is_usable():
            self._signal(vmcb, _NMI)

    def _is_usable(self) -> bool:
        return self._view.is_shared(self.gpa, PAGE_SIZE)

    def _signal(self, vmcb: Any, more: int) -> None:
        flags = self._view.read(self.gpa + _FLAGS, 1)[0]
        if not flags & _NO_FURTHER_SIGNAL:
            vmcb.event_inj = HV_EVENT
        self._view.write(self.gpa + _FLAGS, bytes([flags | more | _NO_FURTHER_SIGNAL]))
