# SPDX-License-Identifier: GPL-2.0-or-later
"""The domains of the paper: what runs at which VM privilege level."""

from __future__ import annotations

import enum

__all__ = ["ENCLAVE_VMPL", "KERNEL_VMPL", "MONITOR_VMPL", "SERVICE_VMPL", "VMPLS", "Domain"]


class Domain(enum.Enum):
    """A domain: the paper's name for it, and its VMPL."""

    MON = ("DomMON", 0)
    SER = ("DomSER", 1)
    ENC = ("DomENC", 2)
    UNT = ("DomUNT", 3)

    def __init__(self, label: str, vmpl: int) -> None:
        self.label = label
        self.vmpl = vmpl


#: VM privilege levels; each domain has one
VMPLS = len(Domain)
MONITOR_VMPL, SERVICE_VMPL = Domain.MON.vmpl, Domain.SER.vmpl
ENCLAVE_VMPL, KERNEL_VMPL = Domain.ENC.vmpl, Domain.UNT.vmpl
