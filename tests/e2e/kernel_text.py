# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel of a booted guest: its image as it was measured, and its memory now."""

from __future__ import annotations

from veil.cache import Cache
from veil.cvm import ConfidentialVM
from veil.guest.linux.kernel import Kernel, debian_kernel
from veil.services.kci import KciError, KernelCode, KernelImage, Segment
from veil.snp.layouts import Vmsa

_ADDRESS = 0x0007_FFFF_FFFF_F000  # without the C-bit, which is bit 51
_PRESENT, _LARGE = 1 << 0, 1 << 7

#: Switches jump labels, static calls and trampolines: networking, cgroup controllers, tracepoints on and off.
WORKLOAD = """
ip link set lo up; ping -c1 127.0.0.1
mkdir -p /tmp/groups /tmp/trace; mount -t cgroup2 none /tmp/groups
for name in $(cat /tmp/groups/cgroup.controllers); do echo +$name > /tmp/groups/cgroup.subtree_control; done
mkdir /tmp/groups/one; echo $$ > /tmp/groups/one/cgroup.procs
mount -t tracefs none /tmp/trace
for event in sched/sched_switch raw_syscalls irq kmem net; do echo 1 > /tmp/trace/events/$event/enable; done
echo 0 > /tmp/trace/events/kmem/enable
grep -q sched_switch /tmp/trace/trace && echo traced
"""


def kernel_image(kernel: Kernel | None = None) -> KernelImage:
    """The image of Debian's default kernel, or another's."""
    load = (kernel or debian_kernel(Cache())).load()
    return KernelImage([Segment(piece.virtual, piece.address, piece.data) for piece in load.segments])


class RunningKernel:
    """Memory by virtual address, as VMPL 0 sees it through the page tables of VCPU 0's kernel."""

    def __init__(self, vm: ConfidentialVM) -> None:
        self._vm = vm
        self._view = vm.machine.view(vmpl=0)
        self._functions: dict[str, list[int]] = {}

    def translate(self, address: int) -> int:
        """The GPA of a virtual address. Raises KciError where nothing is mapped."""
        return self._page(address)[0]

    def _page(self, address: int) -> tuple[int, int]:
        """The GPA of a virtual address, and how many bytes are left of its page there."""
        vmsa = self._vm.hypervisor.vcpus[0].contexts[3].vmcb.vmsa_pa
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

    def module_functions(self, name: str) -> list[int]:
        """The functions of a loaded module, as the kernel lists them."""
        # Slow: the kernel computes a long list.
        if name in self._functions:
            return self._functions[name]
        lines = self._vm.run(["grep", rf"\[{name}\]", "/proc/kallsyms"], timeout=60).stdout.decode().splitlines()
        words = [line.split() for line in lines]
        self._functions[name] = [int(word[0], 16) for word in words if word[1] in "tT"]
        return self._functions[name]


def admit_driver(code: KernelCode, running: RunningKernel) -> None:
    """Let the kernel's calls lead to the driver's functions too."""
    code.admit(code.near.admit(targets=running.module_functions("veil")))
