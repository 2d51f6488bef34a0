# SPDX-License-Identifier: GPL-2.0-or-later
"""IOIO: port input and output (56421, "IOIO_PROT"; EXITINFO1 as in APM volume 2, 15.10.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.formats.ghcb import GhcbReason, IoioInfo
from veil.host.ghcb.fields import MAX_SCRATCH, GhcbFault

if TYPE_CHECKING:
    from veil.host.ghcb.fields import GhcbPage
    from veil.host.host import Host
    from veil.host.vcpu import Context, Vcpu

__all__ = ["NOT_SINGLE", "SIZES", "SIZE_MASK", "ioio"]

_IN = int(IoioInfo.IN)
_STRING = int(IoioInfo.STRING)
#: more than one element
NOT_SINGLE = int(IoioInfo.STRING | IoioInfo.REP)
#: in bytes, by the bits of SW_EXITINFO1 that say it
SIZES = {int(IoioInfo.SIZE_8): 1, int(IoioInfo.SIZE_16): 2, int(IoioInfo.SIZE_32): 4}
SIZE_MASK = sum(SIZES)


def ioio(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """One element in RAX, or a string of SW_EXITINFO2 elements in the scratch area."""
    info = ghcb.exit_info_1
    size = SIZES.get(info & SIZE_MASK)
    if size is None:
        raise GhcbFault(GhcbReason.INVALID_INPUT)
    port = info >> 16 & 0xFFFF
    host.device_accessed = True
    if info & _STRING:
        _string(host, context.vmpl, ghcb, port, size)
    elif info & _IN:
        ghcb.set_rax(host.platform.io_read(port, size, context.vmpl) & (1 << 8 * size) - 1)
    else:
        host.platform.io_write(port, size, ghcb.rax & (1 << 8 * size) - 1, context.vmpl)


def _string(host: Host, vmpl: int, ghcb: GhcbPage, port: int, size: int) -> None:
    count = ghcb.exit_info_2
    # Before the multiplication by `size` decides about anything: the count is 64 bits of the guest's choice.
    if count > MAX_SCRATCH:
        raise GhcbFault(GhcbReason.INVALID_SCRATCH_AREA)
    length = count * size
    platform = host.platform
    if ghcb.exit_info_1 & _IN:
        start = ghcb.scratch_area(length)
        mask = (1 << 8 * size) - 1
        data = b"".join((platform.io_read(port, size, vmpl) & mask).to_bytes(size, "little") for _ in range(count))
        if data:
            ghcb.view.write(start, data)
        return
    data = ghcb.scratch_read(length)
    for offset in range(0, length, size):
        platform.io_write(port, size, int.from_bytes(data[offset : offset + size], "little"), vmpl)
