# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's variables that its patches follow: function pointers that calls were made of, constants in code."""

from __future__ import annotations

from collections.abc import Iterable

from veil.formats.page_sizes import PAGE_SIZE
from veil.services.context import Asking, MonitorRefused, ServiceContext
from veil.services.kci.errors import KciError
from veil.services.kci.kernel_image import AddressRange
from veil.services.kci.measured_kernel import MeasuredKernel

__all__ = ["KernelData"]


class KernelData:
    """Copied once for one comparison. They are the kernel's to change: what rules make of them must be harmless
    whatever they hold. The copies go through the first page of the service's memory."""

    def __init__(self, context: ServiceContext, measured: MeasuredKernel) -> None:
        self._context = context
        self._measured = measured
        self._pages: dict[int, bytes] = {}

    def fetch(self, addresses: Iterable[int]) -> Asking[None]:
        """Have the pages of these variables at hand, as far as they are the kernel's."""
        for start in sorted({at - at % PAGE_SIZE for address in addresses for at in (address, address + 7)}):
            try:
                (gpa,) = self._measured.pages(AddressRange(start, start + PAGE_SIZE))
            except KciError:
                continue
            if any(start in piece for piece in self._measured.ranges.read_only):
                self._pages[start] = self._context.guest.read(gpa, PAGE_SIZE)
                continue
            try:
                yield from self._context.monitor.copy_in([gpa], PAGE_SIZE, 0)
            except MonitorRefused:
                continue
            self._pages[start] = self._context.memory.read(0, PAGE_SIZE)

    def read(self, address: int, length: int) -> bytes:
        """Raises KciError for what was not fetched."""
        found = b""
        while len(found) < length:
            at = address + len(found)
            page = self._pages.get(at - at % PAGE_SIZE)
            if page is None:
                raise KciError(f"{address:#x} is no variable that patches follow")
            found += page[at % PAGE_SIZE :][: length - len(found)]
        return found
