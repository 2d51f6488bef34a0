# SPDX-License-Identifier: GPL-2.0-or-later
"""Real mode and virtual-8086 mode have one level each, whatever a VMSA says of its CPL (24594, VMRUN)."""

from __future__ import annotations

import pytest

from tests.small_guest import FREE, STACK, VMSA, SmallGuest
from veil.snp import ExitCode, Permission
from veil.snp.layouts import VmsaSegment

_PE, _VM = 1, 1 << 17
#: Where code of these modes ends, and goes on into a page that nobody may execute.
_END = FREE + 4096
_NOP = b"\x90"


@pytest.mark.parametrize(
    ("cr0", "flags", "needed", "useless"),
    [(0x10, 0, Permission.SX, Permission.UX), (0x10 | _PE, _VM, Permission.UX, Permission.SX)],
)
@pytest.mark.parametrize("cpl", [0, 3])
def test_the_level_is_the_modes(cr0: int, flags: int, needed: Permission, useless: Permission, cpl: int) -> None:
    with SmallGuest() as guest:
        guest.top.write(_END - 16, _NOP * 16)
        guest.permit(_END, Permission.RW, 3)
        for allowed, reached in ((useless, _END - 16), (needed, _END)):
            guest.permit(FREE, Permission.RW | allowed, 3)
            vmsa = guest.vmsa()
            vmsa.cr0, vmsa.cr3, vmsa.cr4, vmsa.efer, vmsa.cpl = cr0, 0, 0, 0x1000, cpl
            for name in ("cs", "ds", "es", "fs", "gs", "ss"):
                setattr(vmsa, name, VmsaSegment(FREE >> 4, 0xF3, 0xFFFF, FREE))
            vmsa.rip, vmsa.rsp, vmsa.rflags = 4096 - 16, STACK % 0x10000, 2 | flags
            guest.top.write(VMSA, bytes(vmsa))
            assert guest.run() == ExitCode.NPF
            assert guest.vmcb.exit_info_2 & -16 == reached, allowed
