# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest requests: messages between the guest and the secure processor (56421, "SNP Guest Request").

The host carries them; they are encrypted with keys that it does not have (56860, "Guest Messages").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.formats.ghcb import GhcbReason, VmmError
from veil.formats.page_sizes import PAGE_SIZE
from veil.host.ghcb.fields import GhcbFault

if TYPE_CHECKING:
    from veil.host.ghcb.fields import GhcbPage
    from veil.host.host import Host
    from veil.host.vcpu import Context, Vcpu

__all__ = ["extended_guest_request", "guest_request"]

_MESSAGE_TYPE = 0x34
_REPORT_REQUEST = 5

_CERTIFICATE_TABLE_END = bytes(24)


def _check_pages(ghcb: GhcbPage) -> None:
    request, response = ghcb.exit_info_1, ghcb.exit_info_2
    shared = ghcb.may_use
    if request % PAGE_SIZE or response % PAGE_SIZE or request == response:
        raise GhcbFault(GhcbReason.INVALID_INPUT)
    if not shared(request, PAGE_SIZE) or not shared(response, PAGE_SIZE):
        raise GhcbFault(GhcbReason.INVALID_INPUT)
    # The answer must not land in the GHCB itself.
    if ghcb.gpa in (request, response):
        raise GhcbFault(GhcbReason.INVALID_INPUT)


def _forward(host: Host, ghcb: GhcbPage, request: bytes) -> None:
    status, response = host.machine.secure_processor.guest_request(request)
    if response:
        ghcb.view.write(ghcb.exit_info_2, response[:PAGE_SIZE])
    ghcb.result2 = status & 0xFFFFFFFF


def guest_request(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """SW_EXITINFO1 is the request page, SW_EXITINFO2 the response page."""
    _check_pages(ghcb)
    _forward(host, ghcb, ghcb.view.read(ghcb.exit_info_1, PAGE_SIZE))


def extended_guest_request(host: Host, vcpu: Vcpu, context: Context, ghcb: GhcbPage) -> None:
    """The same; a report request also gets the host's certificates, in the RBX pages at RAX."""
    _check_pages(ghcb)
    data, pages = ghcb.rax, ghcb.rbx
    request = ghcb.view.read(ghcb.exit_info_1, PAGE_SIZE)
    if request[_MESSAGE_TYPE] == _REPORT_REQUEST:
        certificates = host.certificates() or _CERTIFICATE_TABLE_END
        needed = -(-len(certificates) // PAGE_SIZE) if certificates != _CERTIFICATE_TABLE_END else 0
        if pages < needed:
            ghcb.set_rbx(needed)
            ghcb.result2 = VmmError.INVALID_LENGTH << 32
            return
        if pages:
            area = max(needed, 1) * PAGE_SIZE
            reserved = (ghcb.gpa, ghcb.exit_info_1, ghcb.exit_info_2)
            if data % PAGE_SIZE or not ghcb.may_use(data, area) or any(data <= page < data + area for page in reserved):
                raise GhcbFault(GhcbReason.INVALID_INPUT)
            ghcb.view.write(data, certificates)
    _forward(host, ghcb, request)
