# SPDX-License-Identifier: GPL-2.0-or-later
"""Lock the kernel's text down: nothing changes it any more, it is explained, and nothing else can be executed.

In this order. Text is taken first, so that what is compared is what will run; what VMPL 3 may execute beside it goes
last, when nothing is left that could be refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from veil.formats.domains import Domain
from veil.formats.page_owners import Owner
from veil.services.context import Asking, GuestMemory, MonitorRefused, ServiceContext
from veil.services.kci.errors import KciError, undo
from veil.services.kci.explain_code import Explanation
from veil.services.kci.guarded_code import GuardedCode, leave_pages, move_pages
from veil.services.kci.kernel_data import KernelData
from veil.services.kci.measured_kernel import MeasuredKernel
from veil.snp.rmp import Permission

__all__ = ["LockedText", "NotSound", "forbid_all_code", "forbid_other_code", "guard_text", "lock_text", "unlock_text"]


class NotSound(KciError):
    """The kernel's text is not what was measured, nor what Linux makes of that."""


@dataclass(frozen=True)
class LockedText:
    """The kernel's text, which nobody but the service can write from here on."""

    code: GuardedCode
    explanation: Explanation
    read_only: Sequence[int]
    """Pages of read-only data, which nobody can write at all."""


def guard_text(measured: MeasuredKernel, guest: GuestMemory) -> GuardedCode:
    """The kernel's text with its rules."""
    text = measured.ranges.text
    return GuardedCode(measured.code, text.start, measured.pages(text), guest)


def lock_text(context: ServiceContext, measured: MeasuredKernel) -> Asking[LockedText]:
    """Take text and read-only data from the kernel and explain the text. Raises NotSound, other KciErrors and
    MonitorRefused; then all of it is as it was."""
    code = guard_text(measured, context.guest)
    read_only = [gpa for piece in measured.ranges.read_only for gpa in measured.pages(piece)]
    yield from move_pages(
        context.monitor,
        (code.pages, Owner.KERNEL, Owner.KERNEL_CODE),
        (read_only, Owner.KERNEL, Owner.KERNEL_RODATA),
    )
    try:
        data = KernelData(context, measured)
        yield from data.fetch(measured.code.variables)
        explanation = _explain(measured, code, data)
    except Exception as error:
        yield from undo(error, unlock_text(context, code, read_only))
        raise
    return LockedText(code, explanation, read_only)


def _explain(measured: MeasuredKernel, code: GuardedCode, data: KernelData) -> Explanation:
    rules = measured.code
    explanation = rules.explain(code.read(rules.range.start, rules.range.size), data.read)
    if not explanation.sound:
        first = explanation.unexplained[0]
        raise NotSound(
            f"{explanation.unexplained_bytes} bytes of the kernel's text are not explained, the first at "
            f"{first.address:#x} ({measured.image.symbols.describe(first.address)}): {first.found:#04x} in place of "
            f"{first.expected:#04x}"
        )
    # The last page of text may be longer than text: what is there can be executed too.
    text = measured.ranges.text
    rest = text.end - rules.range.end
    if rest and code.read(rules.range.end, rest) != measured.image.read(rules.range.end, rest):
        raise NotSound(f"what lies behind the kernel's text at {rules.range.end:#x} is not as it was measured")
    return explanation


def unlock_text(context: ServiceContext, code: GuardedCode, read_only: Sequence[int]) -> Asking[None]:
    """Lock-down is refused: text and read-only data are the kernel's again, but for pages that the host keeps."""
    yield from leave_pages(
        context.monitor,
        (read_only, Owner.KERNEL_RODATA, Owner.KERNEL),
        (code.pages, Owner.KERNEL_CODE, Owner.KERNEL),
    )


def forbid_other_code(context: ServiceContext) -> Asking[None]:
    """For good, and for pages that are validated later too: VMPL 3 executes as a supervisor what is verified code."""
    yield from context.monitor.restrict(Owner.KERNEL, Domain.UNT, Permission.ALL & ~Permission.SX)


def forbid_all_code(context: ServiceContext) -> Asking[None]:
    """The kernel's end: VMPL 3 executes nothing as a supervisor any more, on no VCPU, whatever the host runs. Raises
    MonitorRefused if pages keep the right; all others have lost it then."""
    refused: MonitorRefused | None = None
    for owner in (Owner.KERNEL_CODE, Owner.MODULE_CODE, Owner.KERNEL):
        try:
            yield from context.monitor.restrict(owner, Domain.UNT, Permission.ALL & ~Permission.SX)
        except MonitorRefused as error:
            refused = error
    if refused is not None:
        raise refused
