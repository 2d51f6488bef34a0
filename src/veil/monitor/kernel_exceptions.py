# SPDX-License-Identifier: GPL-2.0-or-later
"""An exception for the kernel, made in its registers and on its stack as the processor would (24593, 8.9, "Long-Mode
Interrupt Control Transfers").

The VMCB's EVENTINJ is the host's, and the VMSA's counts only with alternate injection, which the kernel's contexts do
not have: it would leave all of the kernel's interrupts to VeilMon. So VeilMon delivers it itself, in the one case that
is needed: from CPL 0 to a handler that has no stack of its own.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from veil.formats.registers import Rflags
from veil.formats.service_events import VECTOR_PF
from veil.monitor.kernel_memory import KernelMemory, NotMapped

if TYPE_CHECKING:
    from veil.snp.layouts import Vmsa
    from veil.snp.view import View

__all__ = ["CannotDeliver", "deliver"]

_GATE = struct.Struct("<HHHHII")
_FRAME = struct.Struct("<6Q")
_PRESENT, _TYPE, _INTERRUPT_GATE, _TRAP_GATE, _IST = 1 << 15, 0xF00, 0xE00, 0xF00, 7
_CLEARED = Rflags.TF | Rflags.NT | Rflags.RF | Rflags.VM


class CannotDeliver(Exception):
    """The kernel has no handler that could be entered here; one line why. Nothing was changed."""


def deliver(view: View, vmsa: Vmsa, vector: int, error_code: int, address: int) -> None:
    """Change a copy of the context's registers so that it goes on in its handler; `address` becomes CR2 of #PF.

    Raises CannotDeliver.
    """
    if vmsa.cpl:
        raise CannotDeliver("the context is not at CPL 0")
    if (vector + 1) * _GATE.size - 1 > vmsa.idtr.limit:
        raise CannotDeliver(f"the kernel's IDT ends before vector {vector}")
    try:
        memory = KernelMemory(view, vmsa)
        gate = _GATE.unpack(memory.read(vmsa.idtr.base + vector * _GATE.size, _GATE.size))
        low, selector, bits, middle, high, _ = gate
        # The handler must be the kernel's present code segment: any other would need a descriptor to be loaded.
        if not bits & _PRESENT or bits & _TYPE not in (_INTERRUPT_GATE, _TRAP_GATE) or selector != vmsa.cs.selector:
            raise CannotDeliver(f"the kernel's gate {vector} leads to no handler of CPL 0")
        if bits & _IST:
            raise CannotDeliver(f"the kernel's handler {vector} has a stack of its own")
        rsp = (vmsa.rsp & -16) - _FRAME.size
        # RF is set in the image of a fault, so that a breakpoint at the instruction is not met twice.
        frame = (error_code, vmsa.rip, vmsa.cs.selector, vmsa.rflags | Rflags.RF, vmsa.rsp, vmsa.ss.selector)
        memory.write(rsp, _FRAME.pack(*frame))
    except NotMapped as error:
        raise CannotDeliver(str(error)) from error
    vmsa.rsp = rsp
    vmsa.rip = high << 32 | middle << 16 | low
    vmsa.rflags &= ~(_CLEARED | Rflags.IF if bits & _TYPE == _INTERRUPT_GATE else _CLEARED)
    if vector == VECTOR_PF:
        vmsa.cr2 = address
