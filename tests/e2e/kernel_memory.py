# SPDX-License-Identifier: GPL-2.0-or-later
"""The booted kernel's memory by virtual address, through its own page tables."""

from __future__ import annotations

from veil.cvm import ConfidentialVM
from veil.snp.layouts import Vmsa

__all__ = ["KernelMemory"]

_PAGE = 4096
_ADDRESS = 0x0007_FFFF_FFFF_F000  # without the C-bit, which is bit 51
_PRESENT, _LARGE = 1 << 0, 1 << 7


class KernelMemory:
    """Of VCPU 0, as VMPL 0 sees it."""

    def __init__(self, vm: ConfidentialVM) -> None:
        self._view = vm.machine.view(vmpl=0)
        vmsa = vm.hypervisor.vcpus[0].contexts[3].vmcb.vmsa_pa
        self._root = self._view.read_u64(vmsa + Vmsa.cr3.offset) & _ADDRESS

    def translate(self, address: int) -> int:
        """The GPA of a virtual address."""
        table = self._root
        for shift in (39, 30, 21, 12):
            entry = self._view.read_u64(table + (address >> shift & 511) * 8)
            assert entry & _PRESENT, f"{address:#x} is not mapped"
            if shift == 12 or (entry & _LARGE and shift < 39):
                below = (1 << shift) - 1
                return (entry & _ADDRESS & ~below) | (address & below)
            table = entry & _ADDRESS
        raise AssertionError

    def read(self, address: int, size: int) -> bytes:
        """Bytes."""
        made = bytearray()
        while size:
            piece = min(size, _PAGE - address % _PAGE)
            made += self._view.read(self.translate(address), piece)
            address, size = address + piece, size - piece
        return bytes(made)

    def write(self, address: int, data: bytes) -> None:
        """Put bytes on one page."""
        self._view.write(self.translate(address), data)
