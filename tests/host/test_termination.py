# SPDX-License-Identifier: GPL-2.0-or-later
"""The host has words for every reason that VeilMon and the specification know."""

from __future__ import annotations

from enum import IntEnum

import pytest

from veil.formats.termination import GeneralReason, MonitorReason, ReasonSet
from veil.host.termination import describe_termination


@pytest.mark.parametrize(
    ("reason_set", "reasons"), [(ReasonSet.MONITOR, MonitorReason), (ReasonSet.GENERAL, GeneralReason)]
)
def test_every_reason_has_words(reason_set: ReasonSet, reasons: type[IntEnum]) -> None:
    words = [describe_termination(reason_set, reason) for reason in reasons]
    assert len(set(words)) == len(reasons)
    unknown = describe_termination(reason_set, 0xFF)
    assert "does not define" in unknown
    assert unknown not in words


def test_sets_of_others() -> None:
    assert "private to the guest" in describe_termination(9, 0)
