# SPDX-License-Identifier: GPL-2.0-or-later
"""What the secure processor looks for in a CPUID page before it launches it (56860, SNP_LAUNCH_UPDATE)."""

from __future__ import annotations

from veil.snp.errors import LaunchError
from veil.snp.layouts import CPUID_COUNT_MAX, CpuidFunction, CpuidPage

__all__ = ["check_cpuid_page"]

_EXTENDED_STATE = 0xD
#: x87 and SSE, whose area always has this size
_LEGACY, _LEGACY_AREA = 3, 0x240


def check_cpuid_page(page: bytes) -> None:
    """The firmware refuses tables with features that the processor lacks; here, malformed ones. Raises LaunchError."""
    table = CpuidPage.from_buffer_copy(page)
    if table.count > CPUID_COUNT_MAX:
        raise LaunchError(f"the CPUID page has {table.count} entries, at most {CPUID_COUNT_MAX} fit")
    seen = set()
    for entry in table.functions[: table.count]:
        inputs = entry.eax_in, entry.ecx_in, entry.xcr0_in, entry.xss_in
        if inputs in seen:
            raise LaunchError(f"the CPUID page has leaf {entry.eax_in:#x}, {entry.ecx_in} twice")
        seen.add(inputs)
        if entry.eax_in == _EXTENDED_STATE and entry.ecx_in < 2:
            _check_area(entry)


def _check_area(entry: CpuidFunction) -> None:
    """A guest takes the size of its XSAVE area from here: too small a one, and XSAVE overwrites what follows."""
    if not (entry.xcr0_in | entry.xss_in) & ~_LEGACY and entry.ebx != _LEGACY_AREA:
        what = f"an XSAVE area of {entry.ebx:#x} bytes for XCR0 {entry.xcr0_in:#x}"
        raise LaunchError(f"the CPUID page has {what}, not {_LEGACY_AREA:#x}")
