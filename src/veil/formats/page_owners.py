# SPDX-License-Identifier: GPL-2.0-or-later
"""The owners that VeilMon's page book knows, by the numbers under which VeilMon and the services speak of them."""

from __future__ import annotations

import enum

__all__ = ["Owner"]


class Owner(enum.IntEnum):
    """Who a page belongs to. What each level may do with it stands in `veil.monitor.page_rights`."""

    # As a key: enum's own hash is a function in Python.
    __hash__ = int.__hash__

    NOBODY = 0
    """Not RAM."""
    KERNEL = 1
    """Memory of VMPL 3: it may validate, share and give it back."""
    MONITOR = 2
    SERVICE = 3
    """The services' memory: their own, the mailbox, the outbox, their parameters."""
    SERVICE_CODE = 4
    """The services' program."""
    VMSA = 5
    """A VMSA of VMPL 3: the kernel's memory, but not its to change until it deletes the VCPU."""
    BOOT_VMSA = 6
    """The first VMSA of VMPL 3, which VeilMon made."""
    CAA = 7
    """A calling area of VMPL 3: the kernel's to read and write, but it stays validated memory while it is in use."""
    BLOCK = 8
    """A request block of VMPL 3 for the services: like a calling area, and VMPL 1 reaches it too."""
    KERNEL_CODE = 9
    """Code of the kernel that a service keeps from being changed."""
    KERNEL_RODATA = 10
    """Read-only data of the kernel and its modules, the code of the vDSO with it, which processes run."""
    MODULE_CODE = 11
    """Code of a kernel module that a service has accepted."""
    ENCLAVE = 12
    """A shielded program's memory."""
    ENCLAVE_VMSA = 13
    """A shielded program's context."""
    ENCLAVE_WINDOW = 14
    """Where a shielded program and its untrusted process pass each other what they like."""
    ENCLAVE_LEAVING = 15
    """A shielded program's memory on its way back to the kernel: it cannot change any more."""
