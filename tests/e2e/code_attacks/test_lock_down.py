# SPDX-License-Identifier: GPL-2.0-or-later
"""Lock-down is asked for by somebody else, once more, on another VCPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.e2e.code_attacks.accomplice import Accomplice
from tests.e2e.code_attacks.guests import CodeGuest
from veil.formats.domains import KERNEL_VMPL
from veil.formats.kci import KCI_NUMBER, KernelCall
from veil.formats.nested_faults import NestedFault
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


def test_a_vcpu_in_a_module_that_is_looked_at(unasked: Callable[[], CodeGuest]) -> None:
    """Nobody executes a module that was loaded before lock-down while that looks at it. Another VCPU that does, for
    nobody has told it not to, waits, and goes on when lock-down is done: it has attacked nothing."""
    guest = unasked()
    Accomplice(guest, guest.number("page"))
    host, waited = guest.vm.hypervisor, list[int]()

    def fault(vcpu: int, vmpl: int, gpa: int, info: int) -> bool:
        if (vcpu, vmpl) == (1, KERNEL_VMPL) and info & NestedFault.FETCH:
            waited.append(gpa)
        return False

    def in_turns(event: object) -> None:
        host.reschedule = True

    host.on_npf, host.on_event = fault, in_turns
    assert guest.attack("together", guest.block(0), KCI_NUMBER, KernelCall.LOCK_DOWN, "0", "-") == [Status.OK]
    assert waited
    status = guest.status()
    assert status.locked_ns is not None
    assert status.violations == 0


def test_off_nobody_can_ask(unlocked: CodeGuest) -> None:
    """A kernel that was launched without is not locked down by whoever comes along: its user relies on the digest."""
    answer = unlocked.attack("ask", unlocked.block(0), KCI_NUMBER, KernelCall.LOCK_DOWN, "0", "-")
    assert answer == [Status.NOT_ALLOWED]
    assert unlocked.status().locked_ns is None
    assert len(_executable(unlocked)) > 100_000
