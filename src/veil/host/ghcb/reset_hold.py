# SPDX-License-Identifier: GPL-2.0-or-later
"""AP reset hold: a VCPU waits for a start-up IPI, and hears of it where it asked (56421, "AP Reset Hold")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.formats.ghcb import MSR_DATA_SHIFT, GhcbField, MsrResponse
from veil.formats.page_sizes import PAGE_SIZE
from veil.host.vcpu import Hold

if TYPE_CHECKING:
    from veil.host.interfaces import HostMemory
    from veil.host.vcpu import Context

__all__ = ["answer_reset_hold", "ap_reset_hold_answer"]


def ap_reset_hold_answer(*, started: bool) -> int:
    """The MSR's answer: bits 63:12 are nonzero when a SIPI ended the hold."""
    return int(started) << MSR_DATA_SHIFT | MsrResponse.AP_RESET_HOLD


def answer_reset_hold(view: HostMemory, context: Context) -> None:
    """A start-up IPI ended the hold: SW_EXITINFO2, or the MSR's bits 63:12, become nonzero."""
    if context.hold == Hold.MSR:
        context.vmcb.ghcb_gpa = ap_reset_hold_answer(started=True)
    elif context.hold == Hold.NAE and context.ghcb is not None and view.is_shared(context.ghcb, PAGE_SIZE):
        view.write(context.ghcb + GhcbField.SW_EXITINFO2, (1).to_bytes(8, "little"))
