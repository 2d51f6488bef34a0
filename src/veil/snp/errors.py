# SPDX-License-Identifier: GPL-2.0-or-later
"""What can go wrong on the machine, as exceptions."""

from __future__ import annotations

__all__ = ["EngineBuildError", "LaunchError", "RmpViolation", "SnapshotError", "SnpError"]


class SnpError(Exception):
    """The base of every error of the machine."""


class RmpViolation(SnpError):
    """An access or an RMP instruction that the machine refused.

    `vmpl` is None when the host made the access.  `fault` tells what guest machine code would have got: the RMP, ENC,
    SIZEM and VMPL bits of a nested page fault's EXITINFO1 (APM volume 2, 15.36.10), bit 63 for #VC
    PAGE_NOT_VALIDATED (0x404), bit 62 for #GP.
    """

    def __init__(self, gpa: int, vmpl: int | None, access: str, reason: str, fault: int = 0) -> None:
        self.gpa = gpa
        self.vmpl = vmpl
        self.access = access
        self.reason = reason
        self.fault = fault
        who = "host" if vmpl is None else f"VMPL {vmpl}"
        super().__init__(f"{who}: {access} at {gpa:#x} refused: {reason}")


class LaunchError(SnpError):
    """The secure processor refused a launch command."""


class SnapshotError(SnpError):
    """A snapshot cannot be written or is not one that this machine can resume."""


class EngineBuildError(SnpError):
    """The C part of the machine could not be built or loaded."""
