# SPDX-License-Identifier: GPL-2.0-or-later
"""Protected mode without paging, where firmware begins: all memory is private, and #VC has its error code there too."""

from __future__ import annotations

import struct

import pytest

from tests.small_guest import FREE, STACK, VMSA, SmallGuest
from veil.snp import ExitCode
from veil.snp.layouts import VmsaSegment

_VC, _CPUID_EXIT, _FLAGS = 29, 0x72, 2
_RESUME = 1 << 16  # in the image of a fault
_CODE, _HANDLER = 0xE000, 0xE100
_CPUID, _HLT = b"\x0f\xa2", b"\xf4"
_GATE_32, _GATE_16 = 0x8E, 0x86


@pytest.mark.parametrize(
    ("gate", "frame"),
    [
        (_GATE_32, struct.pack("<4I", _CPUID_EXIT, _CODE, 8, _FLAGS | _RESUME)),
        # A 16-bit gate pushes words.
        (_GATE_16, struct.pack("<4H", _CPUID_EXIT, _CODE, 8, _FLAGS)),
    ],
)
def test_vc_pushes_its_error_code(gate: int, frame: bytes) -> None:
    with SmallGuest(vmpl=0) as guest:
        guest.top.write(FREE, struct.pack("<3Q", 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF))
        guest.top.write(FREE + 0x100 + 8 * _VC, struct.pack("<HHBBH", _HANDLER & 0xFFFF, 8, 0, gate, _HANDLER >> 16))
        guest.top.write(_CODE, _CPUID)
        guest.top.write(_HANDLER, _HLT)
        vmsa = guest.vmsa()
        vmsa.cr0, vmsa.cr3, vmsa.cr4, vmsa.efer = 0x11, 0, 0x40, 0x1000
        vmsa.cs = VmsaSegment(8, 0xC9B, 0xFFFFFFFF, 0)
        for name in ("ds", "es", "fs", "gs", "ss"):
            setattr(vmsa, name, VmsaSegment(16, 0xC93, 0xFFFFFFFF, 0))
        vmsa.gdtr, vmsa.idtr = VmsaSegment(0, 0, 23, FREE), VmsaSegment(0, 0, 0x1FF, FREE + 0x100)
        vmsa.rip, vmsa.rsp, vmsa.rflags = _CODE, STACK, _FLAGS
        guest.top.write(VMSA, bytes(vmsa))
        assert guest.run() == ExitCode.HLT
        vmsa = guest.vmsa()
        assert (vmsa.rip, vmsa.rsp) == (_HANDLER + 1, STACK - len(frame))
        assert guest.top.read(vmsa.rsp, len(frame)) == frame
