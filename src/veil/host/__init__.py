# SPDX-License-Identifier: GPL-2.0-or-later
"""The untrusted host: launch, run loop, GHCB protocol; devices are in `veil.host.devices`."""

from __future__ import annotations

from veil.host.channel_listener import ChannelListener
from veil.host.errors import (
    GuestError,
    GuestHung,
    GuestPanic,
    GuestPowerOff,
    GuestReset,
    GuestTerminated,
    HostError,
    LaunchRefused,
    MalformedGhcb,
    NestedPageFault,
    TripleFault,
    UnexpectedExit,
    UnsupportedEvent,
    VmrunRefused,
)
from veil.host.hypervisor import Hypervisor, RunResult
from veil.host.launch import DEFAULT_POLICY, LaunchIdentityBlock, LaunchRegion, SharedPages
from veil.host.observer_events import (
    ApCreationEvent,
    Event,
    ExitEvent,
    GhcbEvent,
    GhcbMsrEvent,
    PageStateEvent,
    VmplEntryEvent,
    VmplSwitchEvent,
)
from veil.host.panic_messages import PanicWatcher
from veil.host.protection import ProtectedRange, Protection
from veil.host.vcpu import RunState

__all__ = [
    "DEFAULT_POLICY",
    "ApCreationEvent",
    "ChannelListener",
    "Event",
    "ExitEvent",
    "GhcbEvent",
    "GhcbMsrEvent",
    "GuestError",
    "GuestHung",
    "GuestPanic",
    "GuestPowerOff",
    "GuestReset",
    "GuestTerminated",
    "HostError",
    "Hypervisor",
    "LaunchIdentityBlock",
    "LaunchRefused",
    "LaunchRegion",
    "MalformedGhcb",
    "NestedPageFault",
    "PageStateEvent",
    "PanicWatcher",
    "ProtectedRange",
    "Protection",
    "RunResult",
    "RunState",
    "SharedPages",
    "TripleFault",
    "UnexpectedExit",
    "UnsupportedEvent",
    "VmplEntryEvent",
    "VmplSwitchEvent",
    "VmrunRefused",
]
