# SPDX-License-Identifier: GPL-2.0-or-later
"""What the hypervisor tells an observer (`Hypervisor.on_event`), for people who test SNP software.

Everything here is what a real host sees: no register, no private memory.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "ApCreationEvent",
    "Event",
    "ExitEvent",
    "GhcbEvent",
    "GhcbMsrEvent",
    "PageStateEvent",
    "VmplEntryEvent",
    "VmplSwitchEvent",
]


@dataclass(frozen=True, slots=True)
class Event:
    """The VCPU, and the VMPL that it ran at."""

    vcpu: int
    vmpl: int


@dataclass(frozen=True, slots=True)
class ExitEvent(Event):
    """A VMRUN came back; the codes are the VMCB's."""

    code: int
    exit_info_1: int
    exit_info_2: int


@dataclass(frozen=True, slots=True)
class GhcbMsrEvent(Event):
    """A request of the GHCB MSR protocol and what the MSR holds afterwards."""

    request: int
    response: int


@dataclass(frozen=True, slots=True)
class GhcbEvent(Event):
    """A request in a GHCB page; `result1` and `result2` are SW_EXITINFO1 and 2 of the answer."""

    exit_code: int
    exit_info_1: int
    exit_info_2: int
    result1: int
    result2: int


@dataclass(frozen=True, slots=True)
class PageStateEvent(Event):
    """A page state change that the guest asked for and got."""

    gpa: int
    size: int
    private: bool


@dataclass(frozen=True, slots=True)
class VmplSwitchEvent(Event):
    """The VCPU goes on at another VMPL, on the guest's request."""

    target: int


@dataclass(frozen=True, slots=True)
class VmplEntryEvent(Event):
    """The host leaves the kernel for a more privileged level of the VCPU, without a request."""

    target: int


@dataclass(frozen=True, slots=True)
class ApCreationEvent(Event):
    """A VMSA was registered for (or, if `vmsa` is None, taken from) a VCPU's VMPL."""

    target_vcpu: int
    target_vmpl: int
    vmsa: int | None
