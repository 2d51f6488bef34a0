# SPDX-License-Identifier: GPL-2.0-or-later
"""VMSAs and EVENTINJ that VMRUN does not take: exit INVALID, and nothing has run (APM volume 2, 15.5.1 and 15.20)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.small_guest import CODE, VMSA, SmallGuest
from veil.snp import CpuFeature, ExitCode
from veil.snp.layouts import Vmsa

_CD, _NW, _PE, _PG = 1 << 30, 1 << 29, 1, 1 << 31
_PAE = 1 << 5
_CODE_32 = 1 << 10  # D of the VMSA's attributes


def _cr0(vmsa: Vmsa, flip: int) -> None:
    vmsa.cr0 ^= flip


def _cr3(vmsa: Vmsa, flip: int) -> None:
    vmsa.cr3 ^= flip


def _cr4(vmsa: Vmsa, flip: int) -> None:
    vmsa.cr4 ^= flip


def _efer(vmsa: Vmsa, flip: int) -> None:
    vmsa.efer ^= flip


def _dr6(vmsa: Vmsa, flip: int) -> None:
    vmsa.dr6 ^= flip


def _dr7(vmsa: Vmsa, flip: int) -> None:
    vmsa.dr7 ^= flip


def _cs(vmsa: Vmsa, flip: int) -> None:
    vmsa.cs.attrib ^= flip


def _sev_features(vmsa: Vmsa, flip: int) -> None:
    vmsa.sev_features ^= flip


def _vmpl(vmsa: Vmsa, flip: int) -> None:
    vmsa.vmpl ^= flip


def _run(change: Callable[[Vmsa, int], None], flip: int, *features: CpuFeature) -> tuple[ExitCode, Vmsa]:
    with SmallGuest("hlt", cpu_features=features) as guest:
        vmsa = guest.vmsa()
        change(vmsa, flip)
        guest.top.write(VMSA, bytes(vmsa))
        return guest.run(), guest.vmsa()


@pytest.mark.parametrize(
    ("change", "flip"),
    [
        (_cr0, _NW),
        (_cr0, 1 << 32),
        (_cr0, 1 << 63),
        pytest.param(_cr0, _PE, id="paging without protection in long mode"),
        *((_cr3, 1 << bit) for bit in (52, 63)),
        pytest.param(_cr4, _PAE, id="long mode without PAE"),
        pytest.param(_cr4, 1 << 12, id="5-level paging"),
        *((_cr4, 1 << bit) for bit in (13, 15, 17, 18, 22, 23, 32, 63)),
        pytest.param(_efer, 1 << 12, id="EFER.SVME"),
        *((_efer, 1 << bit) for bit in (1, 9, 13, 14, 16, 32, 63)),
        (_dr6, 1 << 32),
        (_dr7, 1 << 63),
        pytest.param(_cs, _CODE_32, id="a code segment of 64 bits and of 32"),
        *((_sev_features, 1 << bit) for bit in (0, 1, 2, 9, 63)),
        (_vmpl, 4),
    ],
)
def test_refused(change: Callable[[Vmsa, int], None], flip: int) -> None:
    code, vmsa = _run(change, flip)
    assert code == ExitCode.INVALID
    assert vmsa.rip == CODE


@pytest.mark.parametrize(
    ("change", "flip"),
    [
        (_cr0, _CD),
        (_cr0, _CD | _NW),
        *((_cr4, 1 << bit) for bit in (2, 3, 6, 7, 11, 16)),
        (_efer, 1),
        (_efer, 1 << 11),
        *((_sev_features, 1 << bit) for bit in (4, 5)),
    ],
)
def test_taken(change: Callable[[Vmsa, int], None], flip: int) -> None:
    code, vmsa = _run(change, flip)
    assert code == ExitCode.HLT
    assert vmsa.rip == CODE + 1


@pytest.mark.parametrize(("bit", "feature"), [(18, CpuFeature.XSAVE), (22, CpuFeature.PKU)])
def test_what_the_processor_has_if_asked_for(bit: int, feature: CpuFeature) -> None:
    assert _run(_cr4, 1 << bit, *{CpuFeature.XSAVE, feature})[0] == ExitCode.HLT


_VALID = 1 << 31


@pytest.mark.parametrize(
    ("kind", "vector", "taken"),
    [
        (0, 0x30, True),
        (1, 0x30, False),
        (2, 0x30, True),
        (3, 6, True),
        (3, 2, False),
        (3, 31, True),
        (3, 32, False),
        (4, 0x30, True),
        *((kind, 0x30, False) for kind in (5, 6, 7)),
    ],
)
def test_injection(kind: int, vector: int, taken: bool) -> None:
    with SmallGuest("hlt") as guest:
        guest.vmcb.event_inj = _VALID | kind << 8 | vector
        guest.vmcb.nrip = CODE
        assert guest.run() == (ExitCode.HLT if taken else ExitCode.INVALID)
        assert guest.trap().times == int(taken)


def test_what_is_not_valid_is_not_looked_at() -> None:
    with SmallGuest("hlt") as guest:
        guest.vmcb.event_inj = 7 << 8 | 0xFF
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == 0
