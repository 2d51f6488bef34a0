# SPDX-License-Identifier: GPL-2.0-or-later
"""Where an access to a port or to device memory goes.

Ports of fixed devices are byte registers, found by one dictionary look-up: they are the hot path of a boot. What a
guest can move (BARs of PCI devices) is a range, looked up only when no fixed device claims the port, so a guest that
moves a BAR over a fixed device hides nothing but its BAR.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["IoBus", "MmioBus", "Window"]

PORTS = 0x10000
#: VMPL 3, whose accesses these are if nobody says otherwise.
LEAST_PRIVILEGED = 3


class Window:
    """A range of ports or addresses; `read(offset, size)` and `write(offset, size, value)` get offsets into it.

    Accesses of levels above `vmpl` in number find nobody there.
    """

    __slots__ = ("length", "read", "start", "vmpl", "write")

    def __init__(
        self,
        start: int,
        length: int,
        read: Callable[[int, int], int],
        write: Callable[[int, int, int], None],
        *,
        vmpl: int = LEAST_PRIVILEGED,
    ) -> None:
        self.start = start
        self.length = length
        self.read = read
        self.write = write
        self.vmpl = vmpl


class _Windows:
    """A few windows, searched in the order in which they were added."""

    def __init__(self) -> None:
        self._windows: list[Window] = []

    def add_window(self, window: Window, *, first: bool = False) -> None:
        """Map a window, behind the others or before them."""
        self._windows.insert(0 if first else len(self._windows), window)

    def remove_window(self, window: Window) -> None:
        """Unmap it; nothing happens if it is not mapped."""
        if window in self._windows:
            self._windows.remove(window)

    def _find(self, address: int, size: int, vmpl: int = LEAST_PRIVILEGED) -> Window | None:
        for window in self._windows:
            offset = address - window.start
            if offset >= 0 and offset + size <= window.length:
                return window if vmpl <= window.vmpl else None
        return None


class IoBus(_Windows):
    """The 64 Ki ports. Nobody there: reads are all ones, writes are lost."""

    def __init__(self) -> None:
        super().__init__()
        self._in: dict[int, Callable[[], int]] = {}
        self._out: dict[int, Callable[[int], None]] = {}
        self._wide_in: dict[int, Callable[[int], int]] = {}
        self._wide_out: dict[int, Callable[[int, int], None]] = {}

    def add_register(
        self, port: int, read: Callable[[], int] | None = None, write: Callable[[int], None] | None = None
    ) -> None:
        """A byte register of a fixed device."""
        if read is not None:
            self._in[port] = read
        if write is not None:
            self._out[port] = write

    def add_wide(self, port: int, read: Callable[[int], int], write: Callable[[int, int], None]) -> None:
        """A port of a fixed device that takes accesses of 2 and 4 bytes too: `read(size)`, `write(size, value)`."""
        self._wide_in[port] = read
        self._wide_out[port] = write

    def read(self, port: int, size: int, vmpl: int = LEAST_PRIVILEGED) -> int:
        """IN, executed at a VMPL."""
        if size == 1:
            register = self._in.get(port)
            if register is not None:
                return register()
        wide = self._wide_in.get(port)
        if wide is not None:
            return wide(size)
        window = self._find(port, size, vmpl)
        if window is not None:
            return window.read(port - window.start, size)
        if size == 1:
            return 0xFF
        # Byte registers side by side answer a wide access together, as on an ISA bus.
        value = 0
        for index in range(size):
            register = self._in.get(port + index)
            value |= (0xFF if register is None else register()) << 8 * index
        return value

    def write(self, port: int, size: int, value: int, vmpl: int = LEAST_PRIVILEGED) -> None:
        """OUT, executed at a VMPL."""
        if size == 1:
            register = self._out.get(port)
            if register is not None:
                register(value)
                return
        wide = self._wide_out.get(port)
        if wide is not None:
            wide(size, value)
            return
        window = self._find(port, size, vmpl)
        if window is not None:
            window.write(port - window.start, size, value)
            return
        if size == 1:
            return
        for index in range(size):
            register = self._out.get(port + index)
            if register is not None:
                register(value >> 8 * index & 0xFF)


class MmioBus(_Windows):
    """Device memory. Nobody there: reads are all ones, writes are lost."""

    def read(self, gpa: int, size: int) -> int:
        """A load."""
        window = self._find(gpa, size)
        return (1 << 8 * size) - 1 if window is None else window.read(gpa - window.start, size)

    def write(self, gpa: int, size: int, value: int) -> None:
        """A store."""
        window = self._find(gpa, size)
        if window is not None:
            window.write(gpa - window.start, size, value)
