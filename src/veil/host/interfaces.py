# SPDX-License-Identifier: GPL-2.0-or-later
"""What the hypervisor asks of the machine and of the platform (the board with its devices), as typing protocols.

Tests play the machine with scripted exits against the same faces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from veil.host.saved_state import Dumpable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from veil.snp.rmp import PageSize, RmpResult

__all__ = ["HostMemory", "Platform", "SecureProcessor", "SnpMachine"]


class HostMemory(Protocol):
    """`veil.snp.host_view.HostView`."""

    def is_shared(self, gpa: int, length: int = 1, /) -> bool: ...

    def is_private(self, gpa: int, length: int = 1, /) -> bool: ...

    def read(self, gpa: int, length: int, /) -> bytes: ...

    def write(self, gpa: int, data: bytes, /) -> None: ...

    def rmpupdate(
        self, gpa: int, *, assigned: bool, size: PageSize = ..., immutable: bool = False, count: int = 1
    ) -> RmpResult: ...

    def psmash(self, gpa: int, /) -> RmpResult: ...


class SecureProcessor(Protocol):
    """What a host asks of `veil.snp.secure_processor.SecureProcessor`."""

    def launch_start(self, policy: int, /) -> Any: ...

    def launch_update(
        self,
        gpa: int,
        data: bytes,
        page_type: Any,
        /,
        *,
        vmpl_perms: tuple[int, int, int] = (0, 0, 0),
        large: bool = ...,
    ) -> Any: ...

    def launch_update_vmsa(self, gpa: int, vmsa: bytes, /, *, measured_gpa: int = ...) -> Any: ...

    def launch_finish(
        self,
        *,
        host_data: bytes = ...,
        id_block: bytes | None = ...,
        id_auth: bytes = ...,
        author_key_enabled: bool = ...,
    ) -> Any: ...

    def guest_request(self, request: bytes, /) -> tuple[int, bytes]:
        """(the firmware's status, the response page, empty if there is none)."""


class SnpMachine(Protocol):
    """`veil.snp.machine.Machine`, as far as a host sees it."""

    @property
    def secure_processor(self) -> Any: ...

    @property
    def ram_ranges(self) -> Sequence[tuple[int, int]]:
        """(GPA, length) of each piece of RAM."""

    def host_view(self) -> Any: ...

    def new_vmcb(self) -> Any: ...

    def vmrun(self, vmcb: Any, deadline_ns: int = 0, /) -> None: ...

    @property
    def counters(self) -> Any:
        """`veil.snp._engine.EngineCounters`."""

    def new_switches(self) -> Any:
        """`veil.snp.domain_switches.DomainSwitches`."""

    def vmrun_switching(self, vmcb: Any, policy: Any, deadline_ns: int = 0, /) -> int: ...

    def kick(self) -> None: ...

    def set_pause_limit(self, limit: int, /) -> None: ...

    def attach_vmcb(self, vmcb: Any, /) -> None: ...

    def tsc(self) -> int: ...


class Platform(Dumpable, Protocol):
    """`veil.host.devices.Platform`: everything behind ports, MMIO and MSRs, and the interrupt controllers."""

    #: INIT and start-up IPIs, called with the VCPU's index
    on_init: Callable[[int], None] | None
    on_nmi: Callable[[int], None] | None
    on_sipi: Callable[[int], None] | None
    #: the guest switched off
    on_power_off: Callable[[], None] | None

    @property
    def channel(self) -> Any:
        """`veil.host.devices.channel.ChannelDevice`."""

    #: the guest reset the board
    on_reset: Callable[[], None] | None

    def confine(self, allows: Callable[[int, int], bool], /) -> None:
        """From now on devices reach, for the kernel, only memory of which `allows(gpa, length)` says so."""

    def io_read(self, port: int, size: int, vmpl: int, /) -> int:
        """`vmpl`: whose instruction it is. Some ports are for privileged levels."""

    def io_write(self, port: int, size: int, value: int, vmpl: int, /) -> None: ...

    def mmio_read(self, gpa: int, size: int, vcpu: int, /) -> int: ...

    def mmio_write(self, gpa: int, size: int, value: int, vcpu: int, /) -> None: ...

    def msr_read(self, vcpu: int, msr: int, /) -> int | None: ...

    def msr_write(self, vcpu: int, msr: int, value: int, /) -> bool: ...

    def apic_enabled(self, vcpu: int, /) -> bool:
        """IA32_APIC_BASE.EN."""

    def pending_vector(self, vcpu: int, /) -> int | None: ...

    def acknowledge(self, vcpu: int, /) -> int: ...

    def passes_priorities(self, vcpu: int, /) -> bool:
        """Does the guest's CR8 not matter to the vector that is pending?"""

    def connect_cr8(self, read: Callable[[int], int], write: Callable[[int, int], None], /) -> None:
        """CR8 of a VCPU, by its index, is the upper half of its APIC's TPR."""

    def send_ipi(self, vcpu: int, icr: int, /) -> None:
        """As a write of x2APIC's interrupt command register."""

    def next_deadline_ns(self, vcpu: int, /) -> int | None: ...

    def tick(self, now_ns: int, /) -> None: ...
