# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest ends itself, or meets a #VC that it cannot handle (56421, table "List of Supported Non-Automatic Events")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.host.errors import GuestTerminated, UnsupportedEvent
from veil.host.termination import describe_termination

if TYPE_CHECKING:
    from veil.host.ghcb.fields import GhcbPage
    from veil.host.host import Host
    from veil.host.vcpu import Context, Vcpu

__all__ = ["terminate", "unsupported"]


def terminate(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """SW_EXITINFO1: reason set 3:0, reason code 11:4."""
    reason_set, code = ghcb.exit_info_1 & 0xF, ghcb.exit_info_1 >> 4 & 0xFF
    raise GuestTerminated(reason_set, code, describe_termination(reason_set, code), vcpu=vcpu.index, vmpl=context.vmpl)


def unsupported(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """The guest met a #VC that it does not know; SW_EXITINFO1 is its error code."""
    raise UnsupportedEvent(
        f"the guest cannot handle a #VC with error code {ghcb.exit_info_1:#x}; the host intercepts nothing unusual, "
        "so look for a bug in the guest's #VC handler or in the machine",
        vcpu=vcpu.index,
        vmpl=context.vmpl,
    )
