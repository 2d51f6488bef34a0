# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel of a booted guest: its memory now, by virtual address."""

from __future__ import annotations

from tests.e2e.module_symbols import ModuleSymbols
from veil.cache import Cache
from veil.cvm import ConfidentialVM
from veil.guest.driver.build import build_driver
from veil.guest.linux.kernel import DEFAULT_SERIES, debian_kernel
from veil.services.kci import KciError, KernelCode
from veil.snp.layouts import Vmsa

_ADDRESS = 0x0007_FFFF_FFFF_F000  # without the C-bit, which is bit 51
_PRESENT, _LARGE = 1 << 0, 1 << 7


class RunningKernel:
    """Memory by virtual address, as VMPL 0 sees it through the page tables of VCPU 0's kernel."""

    def __init__(self, vm: ConfidentialVM) -> None:
        self.vm = vm
        self._view = vm.machine.view(vmpl=0)

    def translate(self, address: int) -> int:
        """The GPA of a virtual address. Raises KciError where nothing is mapped."""
        return self._page(address)[0]

    def _page(self, address: int) -> tuple[int, int]:
        """The GPA of a virtual address, and how many bytes are left of its page there."""
        vmsa = self.vm.hypervisor.vcpus[0].contexts[3].vmcb.vmsa_pa
        table = self._view.read_u64(vmsa + Vmsa.cr3.offset) & _ADDRESS
        for shift in (39, 30, 21, 12):
            entry = self._view.read_u64(table + (address >> shift & 511) * 8)
            if not entry & _PRESENT:
                raise KciError(f"{address:#x} is not mapped")
            if shift == 12 or (entry & _LARGE and shift < 39):
                below = (1 << shift) - 1
                return (entry & _ADDRESS & ~below) | (address & below), below + 1 - (address & below)
            table = entry & _ADDRESS
        raise AssertionError

    def read(self, address: int, size: int) -> bytes:
        """Bytes. Raises KciError where nothing is mapped."""
        made = bytearray()
        while size:
            gpa, left = self._page(address)
            piece = min(size, left)
            made += self._view.read(gpa, piece)
            address, size = address + piece, size - piece
        return bytes(made)


def admit_driver(code: KernelCode, running: RunningKernel) -> None:
    """Let the kernel's calls lead to the driver's functions too."""
    driver = build_driver(Cache(), debian_kernel(Cache(), DEFAULT_SERIES))
    code.admit(code.near.admit(targets=ModuleSymbols(running.vm, driver).functions()))
