# SPDX-License-Identifier: GPL-2.0-or-later
"""What the secure processor looks for in a CPUID page before it launches it (56860, SNP_LAUNCH_UPDATE)."""

from __future__ import annotations

from veil.formats.extended_state import EXTENDED_STATE_LEAF, area_size
from veil.snp.errors import LaunchError
from veil.snp.layouts import CPUID_COUNT_MAX, CpuidFunction, CpuidPage

__all__ = ["check_cpuid_page"]

#: subleaf 1, EAX: XSAVEC, XSAVES
_COMPACT_FORMS = 1 << 1 | 1 << 3


def check_cpuid_page(page: bytes) -> None:
    """The firmware refuses tables with features that the processor lacks; here, malformed ones. Raises LaunchError."""
    table = CpuidPage.from_buffer_copy(page)
    if table.count > CPUID_COUNT_MAX:
        raise LaunchError(f"the CPUID page has {table.count} entries, more than {CPUID_COUNT_MAX}")
    entries: list[CpuidFunction] = list(table.functions[: table.count])
    seen = set()
    for entry in entries:
        inputs = (entry.eax_in, entry.ecx_in, entry.xcr0_in, entry.xss_in)
        if inputs in seen:
            raise LaunchError(f"the CPUID page has leaf {entry.eax_in:#x}, {entry.ecx_in} twice")
        seen.add(inputs)
    _check_areas([entry for entry in entries if entry.eax_in == EXTENDED_STATE_LEAF])


def _check_areas(entries: list[CpuidFunction]) -> None:
    """A guest takes the size of its XSAVE area from here: too small a one, and XSAVE overwrites what follows."""
    components = {entry.ecx_in: (entry.eax, entry.ebx, entry.ecx) for entry in entries if entry.ecx_in > 1}
    for entry in entries:
        compact = entry.ecx_in == 1
        if entry.ecx_in > 1 or (compact and not entry.eax & _COMPACT_FORMS):
            continue
        enabled = entry.xcr0_in | (entry.xss_in if compact else 0)
        size = area_size(components, enabled, compact=compact)
        where = f"the CPUID page, leaf 0xd, {entry.ecx_in}, XCR0 {entry.xcr0_in:#x}, XSS {entry.xss_in:#x}"
        if size is None:
            raise LaunchError(f"{where}: it does not say how large each of these components is")
        if entry.ebx != size:
            raise LaunchError(f"{where}: an XSAVE area of {entry.ebx:#x} bytes, not {size:#x}")
