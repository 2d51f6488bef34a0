# SPDX-License-Identifier: GPL-2.0-or-later
"""On the bench: a kernel whose access the RMP refused, and a host that hands it on."""

from __future__ import annotations

import struct

from tests.monitor.harness import FREE, NPF, PAGE, SMALL, SVME, Bench
from veil.snp.layouts import Vmsa, VmsaSegment

__all__ = ["CODE_AT", "C_BIT", "IDT", "PML4", "REFUSED", "STACK", "fault", "gate", "stopped", "tables"]

#: EXITINFO1 of a write that VMPL 3 has no permission for
REFUSED = 1 << 36 | 1 << 34 | 1 << 32 | 1 << 31 | 7
PML4, CODE_AT, STACK, IDT = 0x30000, 0x34000, 0x36000, 0x37000
C_BIT = 1 << 51


def tables(bench: Bench) -> None:
    """The kernel's: the first 2 MiB, page by page and private, at its own address; 2 MiB shared at 1 GiB."""
    kernel = bench.kernel
    kernel.write(PML4, struct.pack("<Q", PML4 + PAGE | C_BIT | 7))
    kernel.write(PML4 + PAGE, struct.pack("<2Q", PML4 + 2 * PAGE | C_BIT | 7, 0x87))
    kernel.write(PML4 + 2 * PAGE, struct.pack("<2Q", PML4 + 3 * PAGE | C_BIT | 7, FREE | C_BIT | 0x87))
    kernel.write(PML4 + 3 * PAGE, struct.pack("<512Q", *(page * PAGE | C_BIT | 7 for page in range(512))))


def fault(
    bench: Bench, gpa: int = SMALL, *, code: str = "488907", info: int = REFUSED, vcpu: int = 0, enter: bool = True,
    **fields: int,
) -> Vmsa:  # fmt: skip
    """The kernel's context leaves by a nested page fault at an instruction, and the host hands it on."""
    bench.kernel.write(CODE_AT, bytes.fromhex(code))
    vmsa = bench.vmsa(bench.vcpus[vcpu].vmsas[3])
    values = {
        "rip": CODE_AT, "rflags": 0x202, "rsp": STACK + 0x808, "rdi": gpa, "rax": 0x1122334455667788,
        "cr3": PML4 | C_BIT, "cr0": 0x80050033, "cr4": 0x620, "guest_exit_code": NPF, "exit_info_1": info,
        "exit_info_2": gpa, "exit_int_info": 0, **fields,
    }  # fmt: skip
    vmsa.cs, vmsa.ss = VmsaSegment(0x10, 0xA9B, 0, 0), VmsaSegment(0x18, 0xC93, 0, 0)
    vmsa.idtr = VmsaSegment(0, 0, 16 * 15 - 1, IDT)
    for name, value in values.items():
        setattr(vmsa, name, value)
    if enter:
        bench.enter(vcpu)
    return vmsa


def stopped(vmsa: Vmsa) -> bool:
    """Does no VMRUN enter the context any more?"""
    return not vmsa.efer & SVME


def gate(handler: int, *, selector: int = 0x10, bits: int = 0x8E00) -> bytes:
    """A descriptor in the IDT."""
    return struct.pack("<HHHHII", handler & 0xFFFF, selector, bits, handler >> 16 & 0xFFFF, handler >> 32, 0)
