# SPDX-License-Identifier: GPL-2.0-or-later
"""Lock-down is asked for by somebody else, once more, on another VCPU."""

from __future__ import annotations

import numpy as np
import pytest

from tests.e2e.code_attacks.guests import CodeGuest
from veil.formats.kci import KCI_NUMBER, KernelCall
from veil.formats.status import Status
from veil.snp import Permission


def _executable(guest: CodeGuest) -> list[int]:
    permissions = guest.vm.machine.rmp.effective()["perms"][:, 3]
    return [int(page) for page in np.flatnonzero(permissions & int(Permission.SX))]


@pytest.mark.parametrize("cpu", [0, 1])
def test_kernel_mode_code_asks_again(locked: CodeGuest, cpu: int) -> None:
    """In the driver's place: it is refused, and in the log; what is executable stays what it was."""
    before, known = _executable(locked), len(locked.violations())
    answer = locked.attack("ask", locked.block(cpu), KCI_NUMBER, KernelCall.LOCK_DOWN, "0", "-", cpu=cpu)
    assert answer == [Status.NOT_ALLOWED]
    assert _executable(locked) == before
    *_, word = violations = locked.violations()
    assert len(violations) == known + 1
    assert "lock-down was asked for again" in word.words


def test_a_program_asks_again(locked: CodeGuest) -> None:
    """Root's gets EALREADY from the driver; another one does not even get there."""
    known = len(locked.violations())
    assert "Operation already in progress" in locked.sh("echo 1 > /dev/veil-kci; exit 0")[1]
    assert locked.sh("stat -c %a /dev/veil-kci") == (0, "200\n")
    assert len(locked.violations()) == known


def test_off_nobody_can_ask(unlocked: CodeGuest) -> None:
    """A kernel that was launched without is not locked down by whoever comes along: its user relies on the digest."""
    answer = unlocked.attack("ask", unlocked.block(0), KCI_NUMBER, KernelCall.LOCK_DOWN, "0", "-")
    assert answer == [Status.NOT_ALLOWED]
    assert unlocked.status().locked_ns is None
    assert len(_executable(unlocked)) > 100_000
