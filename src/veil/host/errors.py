# SPDX-License-Identifier: GPL-2.0-or-later
"""How a guest's life can end at the host, and what a guest can get wrong, each as one line for the user.

The registers of an SNP guest are not the host's to read: a line says which VCPU and which VMPL, never where in the
code.
"""

from __future__ import annotations

from veil.errors import VeilError

__all__ = [
    "GuestError",
    "GuestHung",
    "GuestPanic",
    "GuestPowerOff",
    "GuestReset",
    "GuestTerminated",
    "HostError",
    "LaunchRefused",
    "MalformedGhcb",
    "NestedPageFault",
    "TripleFault",
    "UnexpectedExit",
    "UnsupportedEvent",
    "VmrunRefused",
]


class HostError(VeilError):
    """The base of everything that ends a run at the host."""


class LaunchRefused(HostError):
    """The launch regions do not fit together, or the secure processor or the RMP refused one."""


class GuestError(HostError):
    """The guest ended, or must be ended; `vcpu` and `vmpl` tell who did it."""

    def __init__(self, message: str, *, vcpu: int, vmpl: int) -> None:
        self.vcpu = vcpu
        self.vmpl = vmpl
        super().__init__(f"VCPU {vcpu}, VMPL {vmpl}: {message}")


class GuestTerminated(GuestError):
    """The guest asked to be terminated (56421, "Termination Request")."""

    def __init__(self, reason_set: int, code: int, words: str, *, vcpu: int, vmpl: int) -> None:
        self.reason_set = reason_set
        self.code = code
        self.words = words
        super().__init__(
            f"the guest terminated itself, reason set {reason_set}, code {code}: {words}", vcpu=vcpu, vmpl=vmpl
        )


class TripleFault(GuestError):
    """Exit SHUTDOWN: a fault during the delivery of a double fault."""

    def __init__(self, *, vcpu: int, vmpl: int) -> None:
        super().__init__(
            "triple fault: the guest's exception handlers failed; its last console output tells how far it came",
            vcpu=vcpu,
            vmpl=vmpl,
        )


class NestedPageFault(GuestError):
    """A nested page fault that the host cannot or will not resolve."""

    def __init__(self, gpa: int, info: int, words: str, *, vcpu: int, vmpl: int) -> None:
        self.gpa = gpa
        self.info = info
        super().__init__(f"nested page fault at {gpa:#x} (EXITINFO1 {info:#x}): {words}", vcpu=vcpu, vmpl=vmpl)


class MalformedGhcb(GuestError):
    """A VMGEXIT whose GHCB cannot be used, not even to answer in it."""


class UnsupportedEvent(GuestError):
    """The guest met a #VC that it cannot handle and says so (56421, "Unsupported Non-Automatic Exit")."""


class VmrunRefused(GuestError):
    """VMRUN failed its consistency checks (exit INVALID)."""


class UnexpectedExit(GuestError):
    """An exit code that no intercept of this host causes."""


class GuestHung(HostError):
    """No VCPU can ever run again: all are halted with interrupts off, parked, or never started."""


class GuestPanic(HostError):
    """The guest's kernel reported a panic."""


class GuestReset(HostError):
    """The guest reset its machine; a confidential VM cannot be started over without a new launch."""


class GuestPowerOff(HostError):
    """The guest switched its machine off."""
