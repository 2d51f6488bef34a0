# SPDX-License-Identifier: GPL-2.0-or-later
"""SVSM calls by number: RAX has the protocol in bits 63:32 and the call in 31:0 (58019, section 5)."""

from __future__ import annotations

import enum

__all__ = ["SVSM_CAA_MSR", "AttestationCall", "CoreCall", "ServicesCall", "SvsmProtocol"]

#: by which programs in a kernel learn its calling area's address: its own #VC handler answers (58019)
SVSM_CAA_MSR = 0xC001F000


class SvsmProtocol(enum.IntEnum):
    """Protocols that VeilMon speaks."""

    CORE = 0
    ATTESTATION = 1
    SERVICES = 16
    """Veil's own: request blocks of the protected services."""


class CoreCall(enum.IntEnum):
    """Calls of the core protocol (58019, section 6)."""

    REMAP_CA = 0
    PVALIDATE = 1
    CREATE_VCPU = 2
    DELETE_VCPU = 3
    DEPOSIT_MEM = 4
    WITHDRAW_MEM = 5
    QUERY_PROTOCOL = 6
    CONFIGURE_VTOM = 7


class AttestationCall(enum.IntEnum):
    """Calls of the attestation protocol (58019, section 7)."""

    SERVICES = 0
    SINGLE_SERVICE = 1


class ServicesCall(enum.IntEnum):
    """Calls of Veil's own protocol."""

    REGISTER_BLOCK = 0
    """RCX: page, RDX: number of pages (0: no block any more) of this VCPU's request block."""
