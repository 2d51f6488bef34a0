# SPDX-License-Identifier: GPL-2.0-or-later
"""Run VMPL: a domain switch (56421, "SNP Run VMPL")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.formats.ghcb import GhcbReason
from veil.host.ghcb.fields import GhcbFault

if TYPE_CHECKING:
    from veil.host.ghcb.fields import GhcbPage
    from veil.host.host import Host
    from veil.host.vcpu import Context, Vcpu

__all__ = ["run_vmpl"]


def run_vmpl(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """SW_EXITINFO1 is the VMPL at which this VCPU shall go on; there must be a VMSA for it."""
    if not host.switch_vmpl(vcpu, context, ghcb.exit_info_1):
        raise GhcbFault(GhcbReason.INVALID_INPUT)
