# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUID pages of a launch: what is said of XSAVE's area must be true for the XCR0 and XSS for which it is said."""

from __future__ import annotations

import struct

import pytest

from veil.snp import CpuFeature, LaunchError, Machine
from veil.snp.cpuid_page_checks import check_cpuid_page

#: (leaf, subleaf, XCR0, XSS, EAX, EBX, ECX, EDX)
_Entry = tuple[int, int, int, int, int, int, int, int]
_KEYS: _Entry = (0xD, 9, 0, 0, 8, 0x980, 0, 0)
_AVX: _Entry = (0xD, 2, 0, 0, 0x100, 0x240, 0, 0)
#: aligned in the compact form
_ODD: _Entry = (0xD, 3, 0, 0, 8, 0x340, 2, 0)
_SHADOW_STACKS: _Entry = (0xD, 11, 0, 0, 16, 0, 1, 0)
_ALL = (_SHADOW_STACKS, _ODD, _AVX, _KEYS)


def _page(*entries: _Entry) -> bytes:
    body = b"".join(struct.pack("<2I2Q4IQ", *entry, 0) for entry in entries)
    return (struct.pack("<IIQ", len(entries), 0, 0) + body).ljust(4096, b"\0")


def _standard(xcr0: int, size: int, xss: int = 0) -> _Entry:
    return 0xD, 0, xcr0, xss, 0xFF, size, 0, 0


def _compact(xcr0: int, size: int, xss: int = 0, eax: int = 15) -> _Entry:
    return 0xD, 1, xcr0, xss, eax, size, 0, 0


@pytest.mark.parametrize(
    "entry",
    [
        *(_standard(xcr0, 0x240) for xcr0 in (0, 1, 3)),
        _standard(7, 0x340),
        _standard(3, 0x240, xss=1 << 11),
        _standard(0x207, 0x988),
        _compact(1, 0x240),
        _compact(3, 0x250, xss=1 << 11),
        _compact(7, 0x340),
        _compact(0x203, 0x248),
        _compact(0x20B, 0x250),
        _compact(0x20F, 0x350),
        _compact(7, 0, eax=1),
    ],
)
def test_a_true_size(entry: _Entry) -> None:
    check_cpuid_page(_page(entry, *_ALL))


@pytest.mark.parametrize(
    "entry",
    [
        _standard(1, 0x23F), _standard(3, 0), _standard(7, 0x240), _standard(7, 0x341), _standard(0x203, 0x248),
        _compact(1, 0x200), _compact(3, 0x240, xss=1 << 11), _compact(0x203, 0x988), _compact(7, 0),
    ],
)  # fmt: skip
def test_another_one(entry: _Entry) -> None:
    with pytest.raises(LaunchError, match=f"leaf 0xd, {entry[1]}, .*an XSAVE area of {entry[5]:#x} bytes, not 0x"):
        check_cpuid_page(_page(*_ALL, entry))


@pytest.mark.parametrize(
    "entry", [_standard(0x13, 0x240), _standard(1 << 63 | 3, 0x240), _compact(3, 0x240, xss=1 << 8)]
)
def test_components_that_are_not_described(entry: _Entry) -> None:
    with pytest.raises(LaunchError, match="does not say how large each of these components is"):
        check_cpuid_page(_page(*_ALL, entry))


def test_the_same_for_another_xcr0_is_not_the_same_entry() -> None:
    check_cpuid_page(_page(_standard(1, 0x240), _standard(7, 0x340), _AVX))
    with pytest.raises(LaunchError, match="leaf 0xd, 0 twice"):
        check_cpuid_page(_page(_standard(1, 0x240), _standard(1, 0x240)))


@pytest.mark.parametrize("features", [(), (CpuFeature.XSAVE,), (CpuFeature.XSAVE, CpuFeature.PKU)])
def test_the_machines_own(features: tuple[CpuFeature, ...]) -> None:
    with Machine(2 << 20, cpu_features=features) as machine:
        check_cpuid_page(
            _page(*((e.leaf, e.subleaf, e.xcr0, 0, e.eax, e.ebx, e.ecx, e.edx) for e in machine.cpuid_entries()))
        )
