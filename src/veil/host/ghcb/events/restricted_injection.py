# SPDX-License-Identifier: GPL-2.0-or-later
"""What levels with restricted injection ask for: their doorbell page, and interrupts between processors (56421, "#HV
Doorbell Page" and "#HV IPI")."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from veil.formats.ghcb import DoorbellRequest, GhcbReason
from veil.formats.page_sizes import PAGE_SIZE
from veil.host.ghcb.fields import GhcbFault

if TYPE_CHECKING:
    from collections.abc import Iterable

    from veil.host.ghcb.fields import GhcbPage
    from veil.host.host import Host
    from veil.host.vcpu import Context, Vcpu

__all__ = ["doorbell_page", "send_ipi"]

_NO_PAGE = (1 << 64) - 1


class _Shorthand(enum.IntEnum):
    """ICR bits 19:18."""

    NONE = 0
    SELF = 1
    ALL = 2
    OTHERS = 3


_FIXED, _LOWEST, _NMI = 0, 1, 4
_LOGICAL = 1 << 11
_ALL = (1 << 32) - 1
_LEAST_VECTOR = 16


def _invalid() -> GhcbFault:
    return GhcbFault(GhcbReason.INVALID_INPUT)


def _require(context: Context) -> None:
    """Nobody else is told of these events."""
    if not context.restricted:
        raise GhcbFault(GhcbReason.INVALID_EVENT)


def doorbell_page(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """SW_EXITINFO1: the request; SW_EXITINFO2: the page's address, also of the answer. All ones: none."""
    _require(context)
    request, gpa = ghcb.exit_info_1, ghcb.exit_info_2
    if request == DoorbellRequest.GET_PREFERRED:
        ghcb.result2 = _NO_PAGE
        return
    if request != DoorbellRequest.QUERY:
        # A request that fails leaves no page either, as under KVM.
        context.clear_doorbell()
        if request == DoorbellRequest.CLEAR:
            return
        if request != DoorbellRequest.SET or gpa % PAGE_SIZE or not ghcb.may_use(gpa, PAGE_SIZE):
            raise _invalid()
        context.set_doorbell(host.view, gpa)
    ghcb.result2 = _NO_PAGE if context.doorbell is None else context.doorbell.gpa


def send_ipi(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """SW_EXITINFO1 is what x2APIC's interrupt command register would get.

    The platform's APICs are the kernel's. Another level's interrupts go to the same level of other processors, past the
    APICs, so they need no EOI; and who runs something less privileged is called from it.
    """
    _require(context)
    icr = ghcb.exit_info_1
    host.device_accessed = True
    if context.vmpl == host.kernel_vmpl:
        if not host.platform.apic_enabled(vcpu.index):
            raise _invalid()
        host.platform.send_ipi(vcpu.index, icr)
        return
    mode, vector = icr >> 8 & 7, icr & 0xFF
    if mode not in (_FIXED, _LOWEST, _NMI) or (mode != _NMI and vector < _LEAST_VECTOR):
        raise _invalid()
    for target in _targets(host, vcpu, icr):
        other = target.contexts.get(context.vmpl)
        if other is None or other.doorbell is None:
            continue
        if mode == _NMI:
            other.offer_nmi()
        else:
            other.own_vectors |= 1 << vector
        host.call_in(target, context.vmpl)
        if mode == _LOWEST:
            break


def _targets(host: Host, vcpu: Vcpu, icr: int) -> Iterable[Vcpu]:
    shorthand, destination = _Shorthand(icr >> 18 & 3), icr >> 32
    if shorthand == _Shorthand.SELF:
        return [vcpu]
    if shorthand != _Shorthand.NONE:
        return [other for other in host.vcpus if other is not vcpu or shorthand == _Shorthand.ALL]
    if destination == _ALL:
        return host.vcpus
    if icr & _LOGICAL:  # a cluster of 16, and a bit for each
        cluster, bits = destination >> 16, destination & 0xFFFF
        return [other for other in host.vcpus if other.apic_id >> 4 == cluster and bits >> (other.apic_id & 15) & 1]
    return [other for other in host.vcpus if other.apic_id == destination]
