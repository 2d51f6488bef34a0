# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host can do (56421, table "List of Supported Non-Automatic Events")."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from veil.host.ghcb.fields import GhcbPage
    from veil.host.host import Host
    from veil.host.vcpu import Context, Vcpu

__all__ = ["hypervisor_features"]


def hypervisor_features(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """SW_EXITINFO2 of the answer is the feature bitmap."""
    ghcb.result2 = host.offered_features(context)
