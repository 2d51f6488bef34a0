# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions that a guest has its host carry out: CPUID, the counters, DR7, VMMCALL, MONITOR and MWAIT, and caches
(56421, table "List of Supported Non-Automatic Events")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.formats.extended_state import EXTENDED_STATE_LEAF

if TYPE_CHECKING:
    from veil.host.ghcb.fields import GhcbPage
    from veil.host.host import Host
    from veil.host.vcpu import Context, Vcpu

__all__ = [
    "acknowledge",
    "cpuid",
    "dr7_read",
    "dr7_write",
    "monitor",
    "mwait",
    "rdpmc",
    "rdtsc",
    "rdtscp",
    "vmmcall",
]

_MASK_32 = 0xFFFFFFFF
_DR7_RESET = 0x400
#: KVM_ENOSYS: no hypercall is known.
_NO_SUCH_HYPERCALL = (1 << 64) - 1000


def acknowledge(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """WBINVD and INVD (memory is coherent), NMI complete (the processor knows by IRET)."""


def cpuid(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """CPUID of EAX, ECX."""
    leaf, subleaf = ghcb.rax & _MASK_32, ghcb.rcx & _MASK_32
    xcr0 = ghcb.need_xcr0() if leaf == EXTENDED_STATE_LEAF else 1
    enabled = host.platform.apic_enabled(vcpu.index)
    eax, ebx, ecx, edx = host.cpuid.answer(leaf, subleaf, vcpu.apic_id, apic_enabled=enabled, xcr0=xcr0)
    ghcb.set_rax(eax)
    ghcb.set_rbx(ebx)
    ghcb.set_rcx(ecx)
    ghcb.set_rdx(edx)


def _tsc(host: Host, ghcb: GhcbPage) -> None:
    tsc = host.machine.tsc()
    ghcb.set_rax(tsc & _MASK_32)
    ghcb.set_rdx(tsc >> 32 & _MASK_32)


def rdtsc(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """The host does not intercept RDTSC, but a guest may ask."""
    _tsc(host, ghcb)


def rdtscp(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """RDTSCP; TSC_AUX belongs to the guest, the host can only guess the usual value."""
    _tsc(host, ghcb)
    ghcb.set_rcx(vcpu.index)


def rdpmc(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """Performance counters are not modelled: they stand still."""
    _ = ghcb.rcx
    ghcb.set_rax(0)
    ghcb.set_rdx(0)


def dr7_read(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """Guests keep DR7 themselves; the host never learns it."""
    ghcb.set_rax(_DR7_RESET)


def dr7_write(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """Breakpoints of a guest whose registers the host cannot set are no use; accepted and ignored, as KVM does."""
    _ = ghcb.rax


def vmmcall(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """There are no hypercalls."""
    _ = ghcb.rax, ghcb.cpl
    ghcb.set_rax(_NO_SUCH_HYPERCALL)


def monitor(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """MONITOR: nothing is armed."""
    _ = ghcb.rax, ghcb.rcx, ghcb.rdx


def mwait(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """MWAIT may return at any time; a good moment for another VCPU."""
    _ = ghcb.rax, ghcb.rcx
    host.reschedule = True
