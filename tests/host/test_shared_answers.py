# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilMon reads the host's answer before a kernel on another VCPU, which could write the same pages, runs."""

from __future__ import annotations

import struct

import pytest

from tests.host.fakes import FIELDS, GHCB, VMSA, Guest
from veil.formats.ghcb import NaeEvent
from veil.host.scheduler import SLICE_NS
from veil.snp.exit_codes import ExitCode
from veil.snp.layouts import Vmcb

KERNEL_VMSA = 0x2000


class Busy(Guest):
    """VeilMon asks `requests` times on VCPU 0, each longer than a slice; the kernel computes on VCPU 1."""

    def __init__(self, requests: int) -> None:
        self.now = 0
        super().__init__(2, monitor=True, clock=lambda: self.now)
        self.host.vcpus[1].set_vmsa(3, KERNEL_VMSA).ghcb = GHCB
        self.host.vcpus[1].start(3)
        self.machine.script(VMSA, *[self._ask] * requests)
        self.machine.script(KERNEL_VMSA, *[self._compute] * 10_000)

    def _ask(self, vmcb: Vmcb) -> None:
        self.now += 2 * SLICE_NS
        fields = {"code": int(NaeEvent.HV_FEATURES), "info1": 0, "info2": 0}
        page = bytearray(4096)
        bitmap = 0
        for name, value in fields.items():
            struct.pack_into("<Q", page, FIELDS[name], value)
            bitmap |= 1 << FIELDS[name] // 8
        page[0x3F0:0x400] = bitmap.to_bytes(16, "little")
        struct.pack_into("<HI", page, 0xFFA, 2, 0)
        self.view.memory[GHCB : GHCB + 4096] = page
        vmcb.ghcb_gpa = GHCB
        # Something came for a device meanwhile.
        self.host.post(lambda: None)

    def _compute(self, vmcb: Vmcb) -> int:
        self.now += SLICE_NS
        return ExitCode.INTR


@pytest.mark.parametrize("requests", [1, 3])
def test_nobody_runs_between_answer_and_reader(requests: int) -> None:
    guest = Busy(requests)
    guest.host.run(until=lambda: len(guest.machine.ran) > 20)
    first = guest.machine.ran.index(VMSA)
    assert guest.machine.ran[first : first + requests + 1] == [VMSA] * (requests + 1)


def test_one_that_asks_without_end_does_not_keep_the_others_out() -> None:
    guest = Busy(2000)
    guest.host.run(until=lambda: KERNEL_VMSA in guest.machine.ran[3:])
    assert len(guest.machine.scripts[VMSA]) > 0
