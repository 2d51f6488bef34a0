# SPDX-License-Identifier: GPL-2.0-or-later
"""MSR: RDMSR and WRMSR of intercepted registers (56421, "MSR_PROT")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.formats.ghcb import GhcbReason
from veil.host.ghcb.fields import GhcbFault, InjectException

if TYPE_CHECKING:
    from veil.host.ghcb.fields import GhcbPage
    from veil.host.host import Host
    from veil.host.vcpu import Context, Vcpu

__all__ = ["msr"]

_GP = 13
_MASK_32 = 0xFFFFFFFF


def msr(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """SW_EXITINFO1 0: read RCX into EDX:EAX; 1: write. A register that nobody has is #GP(0)."""
    register = ghcb.rcx & _MASK_32
    if ghcb.exit_info_1 == 0:
        value = host.platform.msr_read(vcpu.index, register)
        if value is None:
            raise InjectException(_GP, 0)
        ghcb.set_rax(value & _MASK_32)
        ghcb.set_rdx(value >> 32 & _MASK_32)
    elif ghcb.exit_info_1 == 1:
        written = ghcb.rax & _MASK_32 | (ghcb.rdx & _MASK_32) << 32
        host.device_accessed = True
        if not host.platform.msr_write(vcpu.index, register, written):
            raise InjectException(_GP, 0)
    else:
        raise GhcbFault(GhcbReason.INVALID_INPUT)
