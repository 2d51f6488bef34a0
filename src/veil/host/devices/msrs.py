# SPDX-License-Identifier: GPL-2.0-or-later
"""The model-specific registers that an SNP guest asks its host for, other than those of the APIC.

Nothing that matters may come from here: a guest's own MSRs are in its VMSA. What Linux 6.12 asks for is answered as a
plain EPYC would; the rest is #GP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MsrTable"]

_TSC = 0x10
_SYSCFG_MEMORY_ENCRYPTION = 1 << 23
_HWCR_SMM_LOCK = 1 << 0
_HWCR_TSC_FREQ_SELECT = 1 << 24

# Registers with a constant value, whose writes are accepted and forgotten.
_CONSTANT = {
    0x0000008B: 0,  # PATCH_LEVEL
    0x000000FE: 0,  # MTRRcap: no variable and no fixed ranges
    0x000002FF: 0x806,  # MTRRdefType: enabled, write-back
    0x00000179: 0,  # MCG_CAP: no banks
    0x0000017A: 0,  # MCG_STATUS
    # Performance counters that stand still: Linux finds that they do not count and leaves them alone.
    **dict.fromkeys(range(0xC0010000, 0xC0010008), 0),
    # Without memory encryption in SYSCFG, or with SMM not locked, Linux hides its sev and svsm flags.
    0xC0010010: _SYSCFG_MEMORY_ENCRYPTION,
    0xC0010015: _HWCR_SMM_LOCK | _HWCR_TSC_FREQ_SELECT,
    0xC001001F: 0,  # NB_CFG
    0xC0010058: 0,  # MMIO configuration base: none
    0xC0011020: 0,  # LS_CFG
    0xC0011029: 1 << 1,  # DE_CFG: LFENCE is serializing
}


class MsrTable:
    """`read` gives None and `write` False for what is #GP."""

    def __init__(self, tsc: Callable[[], int]) -> None:
        self._tsc = tsc

    def read(self, msr: int) -> int | None:
        """RDMSR."""
        if msr == _TSC:
            return self._tsc()
        return _CONSTANT.get(msr)

    def write(self, msr: int, value: int) -> bool:
        """WRMSR."""
        return msr in _CONSTANT
