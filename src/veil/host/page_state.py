# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages change hands: what the host does with the RMP for page state changes, whoever asks.

The RMP itself is the record; a page that is already as asked is left alone, because RMPUPDATE on a page that the
guest owns would take its validation away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.formats.page_sizes import PAGE_SIZE, PAGE_SIZE_2M
from veil.snp.rmp import PageSize, RmpResult

if TYPE_CHECKING:
    from veil.host.interfaces import HostMemory

__all__ = ["change_page_state", "smash"]


def smash(view: HostMemory, gpa: int) -> bool:
    """PSMASH the 2 MiB entry that covers a page; False if there is none."""
    return view.psmash(gpa & -PAGE_SIZE_2M) == RmpResult.SUCCESS


def _change_4k(view: HostMemory, gpa: int, private: bool) -> bool:
    if view.is_shared(gpa, PAGE_SIZE) != private:
        return True
    code = view.rmpupdate(gpa, assigned=private)
    if code == RmpResult.FAIL_OVERLAP and smash(view, gpa):
        code = view.rmpupdate(gpa, assigned=private)
    return code == RmpResult.SUCCESS


def change_page_state(view: HostMemory, gpa: int, *, private: bool, large: bool = False) -> bool:
    """Give a page of guest memory to the guest or take it back; False if the RMP refuses.

    `gpa` must lie in guest memory and be aligned to the page's size.  A 2 MiB page whose parts differ, or that the RMP
    holds as 4 KiB pages, is changed in 4 KiB pages.
    """
    if not large:
        return _change_4k(view, gpa, private)
    # Firmware asks again for all of memory that it has already: page by page that would take half a second.
    if private and view.is_private(gpa, PAGE_SIZE_2M):
        return True
    # With an entry of 2 MiB in the guest's hands its first page is the guest's; with entries of 4 KiB in the guest's
    # hands RMPUPDATE refuses. So this never resets a page that is the guest's already.
    if view.is_shared(gpa, PAGE_SIZE) == private:
        code = view.rmpupdate(gpa, assigned=private, size=PageSize.SIZE_2M)
        if code == RmpResult.SUCCESS:
            return True
        if code != RmpResult.FAIL_OVERLAP:
            return False
    return all(_change_4k(view, gpa + offset, private) for offset in range(0, PAGE_SIZE_2M, PAGE_SIZE))
