# SPDX-License-Identifier: GPL-2.0-or-later
"""Page state change (56421, "SNP Page State Change")."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from veil.formats.ghcb import GhcbReason, PageOperation
from veil.formats.page_sizes import PAGE_SIZE, PAGE_SIZE_2M
from veil.host.ghcb.fields import GhcbFault
from veil.host.page_state import smash

if TYPE_CHECKING:
    from veil.host.ghcb.fields import GhcbPage
    from veil.host.host import Host
    from veil.host.vcpu import Context, Vcpu

__all__ = ["MAX_ENTRIES", "page_state_change"]

MAX_ENTRIES = 253

_HEADER = struct.Struct("<HHI")
_ENTRY = struct.Struct("<Q")
_CURRENT_MASK = 0xFFF
_GPA_MASK = (1 << 52) - PAGE_SIZE
_OPERATION_SHIFT = 52
_LARGE = 1 << 56
_RESERVED = 0x7F << 57

# SW_EXITINFO2 of the answer.
_ERROR_GENERIC = 0x100 << 32
_ERROR_HEADER = 1 << 32 | 1
_ERROR_ENTRY = 1 << 32 | 2


_OPERATIONS = frozenset(PageOperation)


def page_state_change(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """Work through the entries from the header's current one to its last.

    The header's current entry and each entry's current page tell the guest how far the host came; SW_EXITINFO2 is an
    error of the entry where it stopped.
    """
    size = _HEADER.size
    header = ghcb.scratch_read(size)
    # As KVM, whatever the reserved half says: Debian 13's OVMF leaves there what was in its buffer.
    current, last, reserved = _HEADER.unpack(header)
    if last >= MAX_ENTRIES:
        ghcb.result2 = _ERROR_HEADER
        return
    if current > last:
        return
    area = bytearray(ghcb.scratch_read(size + (last + 1) * _ENTRY.size))
    start = ghcb.scratch_area(len(area))
    done = current
    while done <= last:
        offset = size + done * _ENTRY.size
        entry: int = _ENTRY.unpack_from(area, offset)[0]
        error, reached = _change(host, vcpu, context, entry)
        _ENTRY.pack_into(area, offset, entry & ~_CURRENT_MASK | reached)
        if error:
            ghcb.result2 = error
            break
        done += 1
    _HEADER.pack_into(area, 0, done, last, reserved)
    if not ghcb.view.is_shared(start, len(area)):
        # The guest gave away the page that its request lies in.
        raise GhcbFault(GhcbReason.INVALID_SCRATCH_AREA)
    ghcb.view.write(start, bytes(area))


def _change(host: Host, vcpu: Vcpu, context: Context, entry: int) -> tuple[int, int]:
    """One entry: the error (0 for none) and the new current page."""
    reached = entry & _CURRENT_MASK
    gpa = entry & _GPA_MASK
    operation = entry >> _OPERATION_SHIFT & 0xF
    large = bool(entry & _LARGE)
    length = PAGE_SIZE_2M if large else PAGE_SIZE
    pages = length // PAGE_SIZE
    if entry & _RESERVED or reached > pages or gpa % length or operation not in _OPERATIONS:
        return _ERROR_ENTRY, reached
    if not host.may_name(context, gpa, length):
        return _ERROR_ENTRY, reached
    if operation in (PageOperation.PSMASH, PageOperation.UNSMASH):
        # Advice about the RMP's page sizes. Nothing can join pages that the guest has validated one by one.
        if operation == PageOperation.PSMASH and large:
            smash(host.view, gpa)
        return 0, pages
    private = operation == PageOperation.PRIVATE
    if reached:
        for page in range(reached, pages):
            if not host.change_page(vcpu, context, gpa + page * PAGE_SIZE, private=private, large=False):
                return _ERROR_GENERIC, page
    elif not host.change_page(vcpu, context, gpa, private=private, large=large):
        return _ERROR_GENERIC, 0
    return 0, pages
