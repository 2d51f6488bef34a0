# SPDX-License-Identifier: GPL-2.0-or-later
"""The monitor's requests to the untrusted host: MSR protocol and a GHCB page for each VCPU (56421).

All are generators: they `yield` at the VMGEXIT. Nothing that the host answers is trusted beyond "it was done or not".

Who raises MonitorError here (reason 5, HOST_REFUSED) serves the boot alone: without memory to share and VCPUs to run on
there is no VeilMon, and nothing yet that could be lost. After the boot no answer ends VeilMon, for what the services
keep would end with it: the caller is told, or the answer does not matter.
"""

from __future__ import annotations

import struct
from collections.abc import Generator

from veil.formats.domains import ENCLAVE_VMPL
from veil.formats.ghcb import (
    AP_CREATION_APIC_ID_SHIFT,
    AP_CREATION_VMPL_SHIFT,
    MSR_DATA_SHIFT,
    MSR_ERROR,
    MSR_INFO_MASK,
    MSR_PAGE_OPERATION_SHIFT,
    RUN_VMPL_REFUSED,
    ApRequest,
    GhcbField,
    IoioInfo,
    MsrRequest,
    NaeEvent,
    PageOperation,
    run_vmpl_request,
    termination_request,
    valid_bit,
)
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.termination import MonitorReason, ReasonSet
from veil.monitor.errors import MonitorError
from veil.snp.hosted import HostedCpu

__all__ = [
    "Ghcb",
    "give_way",
    "host_features",
    "register_ghcb",
    "share_page",
    "terminate",
]

#: IOIO's EXITINFO1 for OUT of 4 bytes with 64-bit addresses.
_OUT_DWORD = int(IoioInfo.SIZE_32 | IoioInfo.ADDRESS_64)
_RAX = int(GhcbField.RAX)
_RBX = int(GhcbField.RBX)
_EXIT_CODE = int(GhcbField.SW_EXITCODE)
_EXIT_INFO_1 = int(GhcbField.SW_EXITINFO1)
_EXIT_INFO_2 = int(GhcbField.SW_EXITINFO2)
_VALID_BITMAP = int(GhcbField.VALID_BITMAP)
_VERSION = int(GhcbField.PROTOCOL_VERSION)
#: what `_request` fills in
_VALID = sum(map(valid_bit, (_RAX, _RBX, _EXIT_CODE, _EXIT_INFO_1, _EXIT_INFO_2)))


def _msr_call(cpu: HostedCpu, value: int) -> Generator[None, None, int]:
    cpu.ghcb_msr = value
    yield
    answer = cpu.ghcb_msr
    if answer & MSR_INFO_MASK != (value & MSR_INFO_MASK) + 1:
        raise MonitorError(MonitorReason.HOST_REFUSED, f"the host answered {answer:#x} to the request {value:#x}")
    return answer


def host_features(cpu: HostedCpu) -> Generator[None, None, int]:
    """The hypervisor feature bitmap."""
    return (yield from _msr_call(cpu, MsrRequest.HV_FEATURES)) >> MSR_DATA_SHIFT


def give_way(cpu: HostedCpu) -> Generator[None, None, None]:
    """Let the host run others. It is asked something that changes nothing; what it answers does not matter."""
    cpu.ghcb_msr = MsrRequest.HV_FEATURES
    yield


def register_ghcb(cpu: HostedCpu, gpa: int) -> Generator[None, None, None]:
    """Register the page; the host must echo it."""
    if (yield from _msr_call(cpu, gpa | MsrRequest.REGISTER_GPA)) >> MSR_DATA_SHIFT != gpa >> MSR_DATA_SHIFT:
        raise MonitorError(MonitorReason.HOST_REFUSED, "the host refused to register the monitor's GHCB")


def share_page(cpu: HostedCpu, gpa: int) -> Generator[None, None, None]:
    """Ask the host to make a page shared; it must have been invalidated before."""
    request = PageOperation.SHARED << MSR_PAGE_OPERATION_SHIFT | gpa | MsrRequest.PAGE_STATE_CHANGE
    if (yield from _msr_call(cpu, request)) >= MSR_ERROR:
        raise MonitorError(MonitorReason.HOST_REFUSED, f"the host refused to share page {gpa:#x}")


def terminate(cpu: HostedCpu, reason: MonitorReason) -> Generator[None, None, None]:
    """Stop the machine; never resumes."""
    while True:
        cpu.ghcb_msr = termination_request(ReasonSet.MONITOR, reason)
        yield


class Ghcb:
    """A VCPU's shared page for requests with parameters."""

    def __init__(self, cpu: HostedCpu, gpa: int) -> None:
        self.cpu = cpu
        self._gpa = gpa

    def create_vcpu(self, apic_id: int, vmpl: int, vmsa: int, sev_features: int) -> Generator[None, None, None]:
        """SNP AP creation, at boot: make the host run this VMSA at this VMPL of the VCPU."""
        request = apic_id << AP_CREATION_APIC_ID_SHIFT | vmpl << AP_CREATION_VMPL_SHIFT | ApRequest.CREATE
        if (yield from self._request(NaeEvent.AP_CREATION, request, vmsa, rax=sev_features)):
            raise MonitorError(MonitorReason.HOST_REFUSED, f"the host refused GHCB request {NaeEvent.AP_CREATION:#x}")

    def create_enclave(self, vmsa: int, sev_features: int) -> Generator[None, None, bool]:
        """The host may run this VMSA of VMPL 2 from now on, on each VCPU; False if it does not say so."""
        request = ENCLAVE_VMPL << AP_CREATION_VMPL_SHIFT | ApRequest.CREATE
        return not (yield from self._request(NaeEvent.AP_CREATION, request, vmsa, rax=sev_features))

    def destroy_enclave(self, vmsa: int) -> Generator[None, None, None]:
        """The host need not remember it. What it says does not matter: no VMRUN enters what is no VMSA."""
        request = ENCLAVE_VMPL << AP_CREATION_VMPL_SHIFT | ApRequest.DESTROY
        yield from self._request(NaeEvent.AP_CREATION, request, vmsa)

    def out(self, port: int, value: int) -> Generator[None, None, None]:
        """OUT of 4 bytes. What the host answers does not matter: one that does not listen serves no users, and the
        kernel, which can write the shared page, has the services' memory ended with no false answer."""
        yield from self._request(NaeEvent.IOIO, port << 16 | _OUT_DWORD, 0, rax=value)

    def run_vmpl(self, vmpl: int) -> Generator[None, None, bool]:
        """Have the host run this VCPU's VMSA of another level; False if it refuses. It is back for whatever reason."""
        self.cpu.ghcb_msr = run_vmpl_request(vmpl)
        yield
        return self.cpu.ghcb_msr != RUN_VMPL_REFUSED

    def guest_request(self, request: int, response: int) -> Generator[None, None, int]:
        """Have the host carry a message to the secure processor; returns the errors of firmware 31:0 and host 63:32."""
        yield from self._request(NaeEvent.GUEST_REQUEST, request, response)
        return self._result()

    def extended_guest_request(
        self, request: int, response: int, data: int, pages: int
    ) -> Generator[None, None, tuple[int, int]]:
        """The same with the host's certificates; returns (errors, pages that would be needed)."""
        yield from self._request(NaeEvent.EXTENDED_GUEST_REQUEST, request, response, rax=data, rbx=pages)
        return self._result(), self.cpu.view.read_u64(self._gpa + _RBX, private=False)

    def _result(self) -> int:
        return self.cpu.view.read_u64(self._gpa + _EXIT_INFO_2, private=False)

    def _request(
        self, code: int, exit_info_1: int, exit_info_2: int, *, rax: int = 0, rbx: int = 0
    ) -> Generator[None, None, int]:
        """Returns the low half of SW_EXITINFO1: 0 if the host says that it was done."""
        view, gpa = self.cpu.view, self._gpa
        view.zero(gpa, PAGE_SIZE, private=False)
        view.write(gpa + _EXIT_CODE, struct.pack("<3Q", code, exit_info_1, exit_info_2), private=False)
        view.write_u64(gpa + _RAX, rax, private=False)
        view.write_u64(gpa + _RBX, rbx, private=False)
        view.write(gpa + _VALID_BITMAP, _VALID.to_bytes(16, "little"), private=False)
        view.write(gpa + _VERSION, struct.pack("<HI", 2, 0), private=False)
        self.cpu.ghcb_msr = gpa
        yield
        return view.read_u64(gpa + _EXIT_INFO_1, private=False) & 0xFFFFFFFF
