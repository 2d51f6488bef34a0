# SPDX-License-Identifier: GPL-2.0-or-later
"""The numbers of the GHCB protocol (56421), for the guest that asks and the host that answers.

1. The GHCB MSR protocol: requests and responses in the MSR itself (section 2.3).
2. The GHCB page: where its fields are (section 3 "GHCB Layout").
3. Non-automatic events (NAE): the exit codes, and what belongs to single ones (section 4).
"""

from __future__ import annotations

import enum

from veil.formats.domains import ENCLAVE_VMPL, KERNEL_VMPL

__all__ = [
    "AP_CREATION_APIC_ID_SHIFT",
    "AP_CREATION_VMPL_SHIFT",
    "GHCB_MSR",
    "LEAVE_ENCLAVE",
    "MSR_DATA_SHIFT",
    "MSR_ERROR",
    "MSR_INFO_MASK",
    "MSR_PAGE_OPERATION_SHIFT",
    "RUN_CONTEXT_SHIFT",
    "RUN_VMPL_REFUSED",
    "SHARED_BUFFER",
    "SHARED_BUFFER_END",
    "ApRequest",
    "DoorbellRequest",
    "GhcbField",
    "GhcbReason",
    "HypervisorFeatures",
    "IoioInfo",
    "MsrRequest",
    "MsrResponse",
    "NaeEvent",
    "PageOperation",
    "VmmError",
    "run_context_ended",
    "run_context_request",
    "run_vmpl_request",
    "termination_request",
    "valid_bit",
]

# 1. The GHCB MSR protocol

#: where guests have it
GHCB_MSR = 0xC0010130
#: GHCBInfo: what a value of the MSR is; 0: the address of a GHCB page
MSR_INFO_MASK = 0xFFF
#: GHCBData begins here
MSR_DATA_SHIFT = 12
#: in GHCBData of a response to a page state change or to a run of another VMPL: it was not done
MSR_ERROR = 1 << 32
#: in a request for a page state change: the `PageOperation`, bits 55:52
MSR_PAGE_OPERATION_SHIFT = 52


class MsrRequest(enum.IntEnum):
    """GHCBInfo of a request."""

    SEV_INFO = 0x002
    CPUID = 0x004
    AP_RESET_HOLD = 0x006
    PREFERRED_GPA = 0x010
    REGISTER_GPA = 0x012
    PAGE_STATE_CHANGE = 0x014
    RUN_VMPL = 0x016
    HV_FEATURES = 0x080
    TERMINATE = 0x100


class MsrResponse(enum.IntEnum):
    """GHCBInfo of a response: the request's plus one, but for SEV information, whose is one less."""

    SEV_INFO = 0x001
    CPUID = 0x005
    AP_RESET_HOLD = 0x007
    PREFERRED_GPA = 0x011
    REGISTER_GPA = 0x013
    PAGE_STATE_CHANGE = 0x015
    RUN_VMPL = 0x017
    HV_FEATURES = 0x081


_RUN_VMPL = int(MsrRequest.RUN_VMPL)
#: the response to a request for a VMPL that the host does not run
RUN_VMPL_REFUSED = MSR_ERROR | MsrResponse.RUN_VMPL


def run_vmpl_request(vmpl: int) -> int:
    """The request to run this VCPU's VMSA of another VMPL."""
    return vmpl << 32 | _RUN_VMPL


# Contexts of VMPL 2 (an extension, docs/fidelity.md): there are many, they belong to no VCPU, and a request names one.

#: in a request to run VMPL 2: the number of the page with the VMSA, bits 63:40, which 56421 reserves (0: no such page)
RUN_CONTEXT_SHIFT = 40
_PAGE_SHIFT = 12
#: what the GHCB MSR of each such context holds. At CPL 3 there is no WRMSR: VMGEXIT alone has VMPL 3 run again.
LEAVE_ENCLAVE = run_vmpl_request(KERNEL_VMPL)
_ENDED = 2 << 32
_CODE_MASK = 0xFFFFFF


def run_context_request(vmsa: int) -> int:
    """The request to run a context of VMPL 2: the GPA of its page, below 64 GiB."""
    return vmsa >> _PAGE_SHIFT << RUN_CONTEXT_SHIFT | run_vmpl_request(ENCLAVE_VMPL)


def run_context_ended(exit_code: int) -> int:
    """The response if the context left by an exit that nobody handles: 2 in bits 39:32, the exit code in 63:40.

    0 there means that it left by itself or for an interrupt, 1 that the host does not run it (`RUN_VMPL_REFUSED`).
    """
    return (exit_code & _CODE_MASK) << RUN_CONTEXT_SHIFT | _ENDED | MsrResponse.RUN_VMPL


def termination_request(reason_set: int, reason: int) -> int:
    """The request to stop the guest (`veil.formats.termination` has the reasons)."""
    return reason << 16 | reason_set << MSR_DATA_SHIFT | MsrRequest.TERMINATE


class PageOperation(enum.IntEnum):
    """What is to happen to a page, in a page state change by the MSR (the first two) or by the page."""

    PRIVATE = 1
    SHARED = 2
    PSMASH = 3
    UNSMASH = 4


class HypervisorFeatures(enum.IntFlag):
    """What the host can do: GHCBData of the response, or SW_EXITINFO2 of the event (table "Hypervisor Features")."""

    SNP = 1 << 0
    AP_CREATION = 1 << 1
    RESTRICTED_INJECTION = 1 << 2
    RESTRICTED_INJECTION_TIMER = 1 << 3
    APIC_ID_LIST = 1 << 4
    MULTI_VMPL = 1 << 5


# 2. The GHCB page


class GhcbField(enum.IntEnum):
    """Offsets in the page. All but CPL, the last two fields and the bitmap itself are 8 bytes."""

    CPL = 0x0CB
    RAX = 0x1F8
    RCX = 0x308
    RDX = 0x310
    RBX = 0x318
    SW_EXITCODE = 0x390
    SW_EXITINFO1 = 0x398
    SW_EXITINFO2 = 0x3A0
    SW_SCRATCH = 0x3A8
    XCR0 = 0x3E8
    VALID_BITMAP = 0x3F0
    """16 bytes: `valid_bit` of each field that who writes the page has filled in."""
    PROTOCOL_VERSION = 0xFFA
    """u16."""
    GHCB_USAGE = 0xFFC
    """u32; 0: the layout of this table."""


#: a part of the page for longer arguments
SHARED_BUFFER = 0x800
SHARED_BUFFER_END = 0xFF0


def valid_bit(field: int) -> int:
    """A field's bit in VALID_BITMAP, which is read as one number of 128 bits."""
    return 1 << field // 8


class GhcbReason(enum.IntEnum):
    """SW_EXITINFO2 of an answer whose SW_EXITINFO1 is 2: what is wrong with the request (section 4.1)."""

    NOT_REGISTERED = 1
    INVALID_USAGE = 2
    INVALID_SCRATCH_AREA = 3
    MISSING_INPUT = 4
    INVALID_INPUT = 5
    INVALID_EVENT = 6


# 3. Non-automatic events


class NaeEvent(enum.IntEnum):
    """SW_EXITCODE (table "List of Supported Non-Automatic Events")."""

    DR7_READ = 0x27
    DR7_WRITE = 0x37
    RDTSC = 0x6E
    RDPMC = 0x6F
    CPUID = 0x72
    INVD = 0x76
    IOIO = 0x7B
    MSR = 0x7C
    VMMCALL = 0x81
    RDTSCP = 0x87
    WBINVD = 0x89
    MONITOR = 0x8A
    MWAIT = 0x8B
    MMIO_READ = 0x80000001
    MMIO_WRITE = 0x80000002
    NMI_COMPLETE = 0x80000003
    AP_RESET_HOLD = 0x80000004
    AP_JUMP_TABLE = 0x80000005
    PAGE_STATE_CHANGE = 0x80000010
    GUEST_REQUEST = 0x80000011
    EXTENDED_GUEST_REQUEST = 0x80000012
    AP_CREATION = 0x80000013
    HV_DOORBELL = 0x80000014
    HV_IPI = 0x80000015
    HV_TIMER = 0x80000016
    APIC_IDS = 0x80000017
    RUN_VMPL = 0x80000018
    HV_FEATURES = 0x8000FFFD
    TERMINATE = 0x8000FFFE
    UNSUPPORTED = 0x8000FFFF


class IoioInfo(enum.IntFlag):
    """SW_EXITINFO1 of IOIO, as EXITINFO1 of the intercept (24593, section 15.10.2); the port is in bits 31:16."""

    IN = 1 << 0
    STRING = 1 << 2
    REP = 1 << 3
    SIZE_8 = 1 << 4
    SIZE_16 = 1 << 5
    SIZE_32 = 1 << 6
    ADDRESS_16 = 1 << 7
    ADDRESS_32 = 1 << 8
    ADDRESS_64 = 1 << 9


class ApRequest(enum.IntEnum):
    """SW_EXITINFO1[15:0] of AP creation."""

    CREATE_ON_INIT = 0
    CREATE = 1
    DESTROY = 2


class DoorbellRequest(enum.IntEnum):
    """SW_EXITINFO1 of the #HV doorbell page's event."""

    GET_PREFERRED = 0
    SET = 1
    QUERY = 2
    CLEAR = 3


#: in SW_EXITINFO1 of AP creation: bits 19:16 and 63:32. For VMPL 2 under a kernel of VMPL 3 the APIC ID says nothing,
#: and DESTROY names the VMSA in SW_EXITINFO2 (an extension, docs/fidelity.md).
AP_CREATION_VMPL_SHIFT = 16
AP_CREATION_APIC_ID_SHIFT = 32


class VmmError(enum.IntEnum):
    """SW_EXITINFO2[63:32] of the answer to a guest request: what the host itself has to say."""

    INVALID_LENGTH = 1
    """Too few pages for the certificates."""
    BUSY = 2
