# SPDX-License-Identifier: GPL-2.0-or-later
"""The monitor's requests to the untrusted host: MSR protocol and a GHCB page for each VCPU (56421).

All are generators: they `yield` at the VMGEXIT. Nothing that the host answers is trusted beyond "it was done or not".
"""

from __future__ import annotations

import struct
from collections.abc import Generator

from veil.monitor.errors import MonitorError, Reason
from veil.snp.hosted import HostedCpu

__all__ = [
    "AP_RESET_HOLD",
    "REASON_SET",
    "RUN_KERNEL",
    "RUN_REFUSED",
    "Ghcb",
    "host_features",
    "register_ghcb",
    "share_page",
    "terminate",
]

#: The reason set of VeilMon's terminations (56421: sets other than 0 belong to the guest's software).
REASON_SET = 5

#: MSR protocol: run this VCPU's VMSA of VMPL 3; the answer if the host will not.
_RUN_VMPL = 0x016
RUN_KERNEL = 3 << 32 | _RUN_VMPL
RUN_REFUSED = 1 << 32 | 0x017
#: MSR protocol: park this VCPU until the host starts another of its contexts, or has a SIPI for it.
AP_RESET_HOLD = 0x006
_REGISTER = 0x012
_PAGE_STATE_CHANGE = 0x014
_PSC_SHARED = 2 << 52
_FEATURES = 0x080
_TERMINATE = 0x100

_NAE_IOIO = 0x7B
_NAE_EXT_GUEST_REQUEST = 0x80000012
_NAE_GUEST_REQUEST = 0x80000011
_NAE_AP_CREATION = 0x80000013
#: IOIO's EXITINFO1 for OUT of 4 bytes with 64-bit addresses.
_OUT_DWORD = 1 << 6 | 1 << 9
_RAX = 0x1F8
_RBX = 0x318
_EXIT_CODE = 0x390
_EXIT_INFO_1 = 0x398
_EXIT_INFO_2 = 0x3A0
_VALID_BITMAP = 0x3F0
_VERSION = 0xFFA


def _msr_call(cpu: HostedCpu, value: int) -> Generator[None, None, int]:
    cpu.ghcb_msr = value
    yield
    answer = cpu.ghcb_msr
    if answer & 0xFFF != (value & 0xFFF) + 1:
        raise MonitorError(Reason.HOST_REFUSED, f"the host answered {answer:#x} to the request {value:#x}")
    return answer


def host_features(cpu: HostedCpu) -> Generator[None, None, int]:
    """The hypervisor feature bitmap."""
    return (yield from _msr_call(cpu, _FEATURES)) >> 12


def register_ghcb(cpu: HostedCpu, gpa: int) -> Generator[None, None, None]:
    """Register the page; the host must echo it."""
    if (yield from _msr_call(cpu, gpa | _REGISTER)) >> 12 != gpa >> 12:
        raise MonitorError(Reason.HOST_REFUSED, "the host refused to register the monitor's GHCB")


def share_page(cpu: HostedCpu, gpa: int) -> Generator[None, None, None]:
    """Ask the host to make a page shared; it must have been invalidated before."""
    if (yield from _msr_call(cpu, gpa | _PSC_SHARED | _PAGE_STATE_CHANGE)) >> 32:
        raise MonitorError(Reason.HOST_REFUSED, f"the host refused to share page {gpa:#x}")


def terminate(cpu: HostedCpu, reason: Reason) -> Generator[None, None, None]:
    """Stop the machine; never resumes."""
    while True:
        cpu.ghcb_msr = _TERMINATE | REASON_SET << 12 | reason << 16
        yield


class Ghcb:
    """A VCPU's shared page for requests with parameters."""

    def __init__(self, cpu: HostedCpu, gpa: int) -> None:
        self._cpu = cpu
        self._gpa = gpa

    def create_vcpu(self, apic_id: int, vmpl: int, vmsa: int, sev_features: int) -> Generator[None, None, None]:
        """SNP AP creation: make the host run this VMSA at this VMPL of the VCPU."""
        yield from self._must(_NAE_AP_CREATION, apic_id << 32 | vmpl << 16 | 1, vmsa, rax=sev_features)

    def out(self, port: int, value: int) -> Generator[None, None, None]:
        """OUT of 4 bytes."""
        yield from self._must(_NAE_IOIO, port << 16 | _OUT_DWORD, 0, rax=value)

    def run_vmpl(self, vmpl: int) -> Generator[None, None, bool]:
        """Have the host run this VCPU's VMSA of another level; False if it refuses. It is back for whatever reason."""
        self._cpu.ghcb_msr = vmpl << 32 | _RUN_VMPL
        yield
        return self._cpu.ghcb_msr != RUN_REFUSED

    def guest_request(self, request: int, response: int) -> Generator[None, None, int]:
        """Have the host carry a message to the secure processor; returns the errors of firmware 31:0 and host 63:32."""
        yield from self._request(_NAE_GUEST_REQUEST, request, response)
        return self._result()

    def extended_guest_request(
        self, request: int, response: int, data: int, pages: int
    ) -> Generator[None, None, tuple[int, int]]:
        """The same with the host's certificates; returns (errors, pages that would be needed)."""
        yield from self._request(_NAE_EXT_GUEST_REQUEST, request, response, rax=data, rbx=pages)
        return self._result(), self._cpu.view.read_u64(self._gpa + _RBX, private=False)

    def _result(self) -> int:
        return self._cpu.view.read_u64(self._gpa + _EXIT_INFO_2, private=False)

    def _must(self, code: int, info_1: int, info_2: int, *, rax: int) -> Generator[None, None, None]:
        if (yield from self._request(code, info_1, info_2, rax=rax)):
            raise MonitorError(Reason.HOST_REFUSED, f"the host refused GHCB request {code:#x}")

    def _request(
        self, code: int, info_1: int, info_2: int, *, rax: int = 0, rbx: int = 0
    ) -> Generator[None, None, int]:
        """Returns the low half of SW_EXITINFO1: 0 if the host says that it was done."""
        view, gpa = self._cpu.view, self._gpa
        view.zero(gpa, 4096, private=False)
        view.write(gpa + _EXIT_CODE, struct.pack("<3Q", code, info_1, info_2), private=False)
        view.write_u64(gpa + _RAX, rax, private=False)
        view.write_u64(gpa + _RBX, rbx, private=False)
        valid = sum(1 << offset // 8 for offset in (_RAX, _RBX, _EXIT_CODE, _EXIT_INFO_1, _EXIT_INFO_2))
        view.write(gpa + _VALID_BITMAP, valid.to_bytes(16, "little"), private=False)
        view.write(gpa + _VERSION, struct.pack("<HI", 2, 0), private=False)
        self._cpu.ghcb_msr = gpa
        yield
        return view.read_u64(gpa + _EXIT_INFO_1, private=False) & 0xFFFFFFFF
