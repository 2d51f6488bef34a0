# SPDX-License-Identifier: GPL-2.0-or-later
"""MMIO read and write (56421, "MMIO Access")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.formats.board import C_BIT
from veil.formats.ghcb import GhcbReason
from veil.host.ghcb.fields import GhcbFault

if TYPE_CHECKING:
    from veil.host.ghcb.fields import GhcbPage
    from veil.host.host import Host
    from veil.host.vcpu import Context, Vcpu

__all__ = ["mmio_read", "mmio_write"]

_LENGTHS = (1, 2, 4, 8)
#: Physical addresses end below the C-bit.
_ADDRESS_END = C_BIT


def _target(host: Host, ghcb: GhcbPage) -> tuple[int, int]:
    """The address and length. Guest memory is refused: devices are elsewhere, and what the guest owns is not ours."""
    gpa, length = ghcb.exit_info_1, ghcb.exit_info_2
    if length not in _LENGTHS or gpa + length > _ADDRESS_END or host.touches_ram(gpa, length):
        raise GhcbFault(GhcbReason.INVALID_INPUT)
    return gpa, length


def mmio_read(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """SW_EXITINFO2 bytes from the device at SW_EXITINFO1 into the scratch area."""
    gpa, length = _target(host, ghcb)
    start = ghcb.scratch_area(length)
    value = host.platform.mmio_read(gpa, length, vcpu.index) & (1 << 8 * length) - 1
    host.device_accessed = True
    ghcb.view.write(start, value.to_bytes(length, "little"))


def mmio_write(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """SW_EXITINFO2 bytes from the scratch area to the device at SW_EXITINFO1."""
    gpa, length = _target(host, ghcb)
    value = int.from_bytes(ghcb.scratch_read(length), "little")
    host.platform.mmio_write(gpa, length, value, vcpu.index)
    host.device_accessed = True
