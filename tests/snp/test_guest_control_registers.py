# SPDX-License-Identifier: GPL-2.0-or-later
"""What may not be written to control registers and EFER raises #GP, and changes nothing (APM volume 2, 3.1)."""

from __future__ import annotations

import pytest

from tests.small_guest import SmallGuest
from veil.snp import ExitCode

_GP = 13
_CR0, _CR4, _EFER = 0x80050033, 0x620, 0xD01


def _write(register: str, value: int) -> str:
    return f"mov rax, {value:#x}\nhere: mov {register}, rax\nhlt"


def _wrmsr(value: int) -> str:
    return f"mov ecx, 0xc0000080\nmov eax, {value & 0xFFFFFFFF:#x}\nmov edx, {value >> 32:#x}\nwrmsr\nhlt"


@pytest.mark.parametrize(
    "code",
    [
        *(_write("cr4", _CR4 | 1 << bit) for bit in (0, 1, 12, 13, 14, 15, 17, 18, 19, 22, 23, 31, 32, 63)),
        pytest.param(_write("cr4", _CR4 & ~0x20), id="CR4.PAE cleared in long mode"),
        *(_write("cr0", _CR0 | 1 << bit) for bit in (32, 63)),
        pytest.param(_write("cr0", _CR0 | 1 << 29), id="CR0.NW without CD"),
        pytest.param(_write("cr0", _CR0 & ~1), id="CR0.PG without PE"),
        pytest.param(_write("cr0", _CR0 & ~(1 << 31)), id="CR0.PG cleared in 64-bit mode"),
        *(_write("cr3", 0x1000 | 1 << bit) for bit in (52, 63)),
        *(_write("cr8", 1 << bit) for bit in (4, 63)),
        *(_wrmsr(_EFER | 1 << bit) for bit in (1, 9, 13, 14, 15, 16, 32, 63)),
        pytest.param(_wrmsr(_EFER & ~(1 << 8)), id="EFER.LME cleared while paging is on"),
    ],
)
def test_general_protection(code: str) -> None:
    with SmallGuest(code) as guest:
        before = guest.vmsa()
        assert guest.run() == ExitCode.HLT
        trap = guest.trap()
        assert (trap.vector, trap.error_code, trap.times) == (_GP, 0, 1)
        after = guest.vmsa()
        assert [(getattr(before, name), getattr(after, name)) for name in ("cr0", "cr3", "cr4", "efer")] == [
            (value, value) for value in (_CR0, 0x1000, _CR4, before.efer)
        ]


@pytest.mark.parametrize(
    ("code", "register", "value"),
    [
        *((_write("cr4", _CR4 ^ 1 << bit), "cr4", _CR4 ^ 1 << bit) for bit in (2, 3, 4, 6, 7, 8, 9, 10, 11, 16)),
        *((_write("cr0", _CR0 ^ 1 << bit), "cr0", _CR0 ^ 1 << bit) for bit in (1, 3, 5, 16, 18, 30)),
        (_write("cr0", _CR0 | 3 << 29), "cr0", _CR0 | 3 << 29),
        (_wrmsr(_EFER & ~1), "efer", 0x1D00),
        (_wrmsr(_EFER | 1 << 12), "efer", 0x1D01),
    ],
)
def test_others_are_taken(code: str, register: str, value: int) -> None:
    with SmallGuest(code) as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == 0
        assert getattr(guest.vmsa(), register) == value


_NOT_CANONICAL = 1 << 47
_FS_BASE, _GS_BASE, _KERNEL_GS_BASE = 0xC0000100, 0xC0000101, 0xC0000102
_LSTAR, _CSTAR, _TSC_AUX, _PAT = 0xC0000082, 0xC0000083, 0xC0000103, 0x277


def _wrmsr_to(msr: int, value: int) -> str:
    return f"mov ecx, {msr:#x}\nmov eax, {value & 0xFFFFFFFF:#x}\nmov edx, {value >> 32:#x}\nwrmsr"


@pytest.mark.parametrize(
    ("msr", "value"),
    [
        *((msr, _NOT_CANONICAL) for msr in (_FS_BASE, _GS_BASE, _KERNEL_GS_BASE, _LSTAR, _CSTAR)),
        *((msr, 0xAAAAAAAAAAAAAAAA) for msr in (_FS_BASE, _LSTAR)),
        (_TSC_AUX, 1 << 32),
        *((_PAT, 0x0007040600070406 ^ kind << 56) for kind in (2, 3, 8, 0x80)),
    ],
)
def test_values_that_an_msr_does_not_take(msr: int, value: int) -> None:
    """They change nothing; others are taken."""
    code = f"{_wrmsr_to(msr, value)}\nhlt"
    with SmallGuest(code) as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap()[:2] == (_GP, 0)
    taken = 0x0001040500070406 if msr == _PAT else (1 << 64) - (1 << 47) if value >> 33 else 7
    with SmallGuest(f"{_wrmsr_to(msr, taken)}\nrdmsr\nhlt") as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap().times == 0
        assert guest.vmsa().rdx << 32 | guest.vmsa().rax == taken


@pytest.mark.parametrize("msr", [0x48, 0x49], ids=["SPEC_CTRL", "PRED_CMD"])
@pytest.mark.parametrize("instruction", ["rdmsr", "wrmsr"])
def test_registers_of_features_that_are_not_there_are_the_hosts(msr: int, instruction: str) -> None:
    """CPUID names neither of them: KVM intercepts them then."""
    with SmallGuest(f"mov ecx, {msr}\nxor eax, eax\nxor edx, edx\n{instruction}\nhlt") as guest:
        assert guest.run() == ExitCode.HLT
        assert guest.trap()[:2] == (29, ExitCode.MSR)
