# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of the GHCB protocol, as the specification prints them (56421)."""

from __future__ import annotations

from veil.formats.ghcb import (
    RUN_VMPL_REFUSED,
    GhcbField,
    MsrRequest,
    MsrResponse,
    NaeEvent,
    run_vmpl_request,
    termination_request,
    valid_bit,
)
from veil.formats.termination import MonitorReason, ReasonSet


def test_responses_follow_their_requests() -> None:
    assert {name: MsrResponse[name] - MsrRequest[name] for name in MsrResponse.__members__} == {
        "SEV_INFO": -1,
        **dict.fromkeys(MsrResponse.__members__.keys() - {"SEV_INFO"}, 1),
    }
    assert MsrRequest.__members__.keys() - MsrResponse.__members__.keys() == {"TERMINATE"}, "which nobody answers"


def test_whole_values() -> None:
    assert (run_vmpl_request(3), RUN_VMPL_REFUSED) == (0x3_0000_0016, 0x1_0000_0017)
    assert termination_request(ReasonSet.MONITOR, MonitorReason.HOST_REFUSED) == 0x55100


def test_the_page() -> None:
    """The fields that a request must have are in the upper half of the bitmap: section 3, "VALID_BITMAP"."""
    assert valid_bit(GhcbField.RAX) == 1 << 63
    assert valid_bit(GhcbField.SW_EXITCODE) == 1 << 114
    assert GhcbField.GHCB_USAGE == GhcbField.PROTOCOL_VERSION + 2
    assert int(NaeEvent.RUN_VMPL) == 0x80000018
