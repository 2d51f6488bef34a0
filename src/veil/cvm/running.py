# SPDX-License-Identifier: GPL-2.0-or-later
"""The untrusted host around a machine: its board and its run loop, as a configuration has them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from veil.cvm.configuration import Configuration
from veil.cvm.console import Console
from veil.cvm.firmware_board import firmware_board
from veil.formats.tsc import TSC_KHZ
from veil.host import Hypervisor, PanicWatcher
from veil.host.devices import Backend, BootItems, Chipset, Platform
from veil.network import UserNetwork
from veil.snp import Machine

if TYPE_CHECKING:
    from veil.cvm.tools import Tool
    from veil.image.launch_image import LaunchImage

__all__ = ["Running", "boot_timeout", "launch_guest", "with_host"]

_MAX_TOLD = 16
_BOOT_TIMEOUT = 180.0
#: Firmware checks and unpacks the kernel at the guest's speed.
_FIRMWARE_BOOT_TIMEOUT = 600.0
#: Somebody looks at it, instruction by instruction.
_DEBUGGED_TIMEOUT = 1e7


@dataclass(frozen=True)
class Running:
    """What there is between the launch, or the restoration, and the end."""

    machine: Machine
    platform: Platform
    hypervisor: Hypervisor
    panic: PanicWatcher


def with_host(
    machine: Machine,
    chosen: Configuration,
    *,
    disks: Sequence[Backend],
    network: UserNetwork | None,
    console: Console,
    say: Callable[[str], None],
    boot: BootItems | None = None,
    kernel_vmpl: int | None = None,
) -> Running:
    """`boot`: what firmware finds to boot. A machine that was restored is past that, and knows its kernel's level."""
    has_board = chosen.firmware is not None or chosen.igvm is not None
    board = firmware_board(chosen, machine, boot) if has_board else None
    platform = Platform(
        machine.host_view(),
        vcpus=chosen.vcpus,
        now_ns=time.monotonic_ns,
        tsc=machine.tsc,
        tsc_khz=TSC_KHZ,
        console=console.feed,
        disks=disks,
        cable=network,
        chipset=Chipset.GENERIC if board is None else Chipset.Q35,
        firmware=board,
    )
    tell = _once(say)
    for disk in platform.disks:
        disk.on_error = disk.on_fault = lambda reason: tell(f"disk: {reason}")
    if platform.network is not None:
        platform.network.on_fault = lambda reason: tell(f"network: {reason}")
    table = [item[:6] for item in machine.cpuid_entries(chosen.vcpus)]
    hypervisor = Hypervisor(
        machine,
        platform,
        chosen.vcpus,
        monitor=chosen.monitor,
        kernel_vmpl=kernel_vmpl,
        cpuid=table,
        certificates=lambda: machine.secure_processor.endorsement.certificate_table,
    )
    hypervisor.converts_pages = board is not None
    if network is not None and platform.network is not None:
        network.on_end = say
        network.plug(platform.network, hypervisor.post)
    panic = PanicWatcher(hypervisor.stop)
    console.panic = panic.feed
    return Running(machine, platform, hypervisor, panic)


def _once(say: Callable[[str], None]) -> Callable[[str], None]:
    """For what a guest can make happen again and again."""
    told: set[str] = set()

    def tell(words: str) -> None:
        if words not in told and len(told) < _MAX_TOLD:
            told.add(words)
            say(words)

    return tell


def launch_guest(hypervisor: Hypervisor, image: LaunchImage, chosen: Configuration) -> None:
    """Load the image and have it measured; an image that brings policy and identity of its own has those."""
    hypervisor.launch(
        image.regions,
        protected=image.protected,
        policy=chosen.policy if image.policy is None else image.policy,
        host_data=chosen.host_data,
        identity=chosen.identity if image.identity is None else image.identity,
        shared=image.shared,
    )


def boot_timeout(chosen: Configuration, tools: Sequence[Tool]) -> float:
    """Seconds from its first instruction to its agent's answer."""
    if any(tool.stops for tool in tools):
        return _DEBUGGED_TIMEOUT
    return _BOOT_TIMEOUT if chosen.firmware is None else _FIRMWARE_BOOT_TIMEOUT
