# SPDX-License-Identifier: GPL-2.0-or-later
"""What the RMP says of who may execute what."""

from __future__ import annotations

import numpy as np

from veil.cvm.inspection import RightsPages, SupervisorCode, kernel_rights, supervisor_code
from veil.snp.rmp import Permission

PAGE = 4096
CODE = int(Permission.R | Permission.SX)
DATA = int(Permission.R | Permission.W | Permission.UX)


def test_before_lock_down_everything_is_code() -> None:
    found = supervisor_code(np.full(8, int(Permission.ALL), dtype=np.uint8), [(0, 8 * PAGE)])
    assert found == SupervisorCode(8, 8, [(0, 8 * PAGE)])
    assert not found.locked


def test_after_lock_down_in_two_pieces_of_ram() -> None:
    pages = np.array([CODE, DATA, CODE, CODE, CODE, 0], dtype=np.uint8)
    found = supervisor_code(pages, [(0, 4 * PAGE), (1 << 32, 2 * PAGE)])
    assert found == SupervisorCode(4, 0, [(0, PAGE), (2 * PAGE, 2 * PAGE), (1 << 32, PAGE)])
    assert found.locked
    # One page that can be written is enough.
    pages[2] |= int(Permission.W)
    assert not supervisor_code(pages, [(0, 4 * PAGE), (1 << 32, 2 * PAGE)]).locked


def test_rights() -> None:
    pages = np.array([CODE, DATA, DATA, 0], dtype=np.uint8)
    assert kernel_rights(pages)[0] == RightsPages(2, read=True, write=True, execute_user=True, execute_supervisor=False)
    assert RightsPages(1, read=True, write=False, execute_user=False, execute_supervisor=True) in kernel_rights(pages)
    assert sum(item.pages for item in kernel_rights(pages)) == len(pages)
