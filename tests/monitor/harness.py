# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory, RMP and views of the machine, with a guest and a host that tests play by hand around a real VeilMon.

The bench does what VMRUN and the host's handlers do: it saves the kernel's registers in its VMSA at VMGEXIT, answers
the monitor's requests, and runs each VCPU's contexts.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import struct
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tests.snp.chip import chip
from veil.formats.domains import ENCLAVE_VMPL
from veil.formats.ghcb import (
    MSR_ERROR,
    MSR_INFO_MASK,
    MSR_PAGE_OPERATION_SHIFT,
    RUN_VMPL_REFUSED,
    ApRequest,
    GhcbField,
    MsrRequest,
    MsrResponse,
    NaeEvent,
    PageOperation,
    run_vmpl_request,
)
from veil.formats.page_sizes import PAGE_SIZE, PAGE_SIZE_2M
from veil.formats.registers import Efer
from veil.formats.request_block import BlockRequest, read_answer, write_request
from veil.formats.status import Status
from veil.host.devices import ChannelDevice
from veil.host.devices.bus import IoBus
from veil.monitor import MonitorParameters, Option, VeilMon
from veil.monitor.parameters import MIN_SHARED
from veil.monitor.svsm_call import ResultCode
from veil.services import ServiceDomain
from veil.services.parameters import ServiceParameters
from veil.snp.guest_bus import GuestBus
from veil.snp.guest_requests import GuestRequests, LaunchedGuest
from veil.snp.host_view import HostView
from veil.snp.hosted import HostedCpu, HostedHeader
from veil.snp.id_block_checks import LaunchIdentity
from veil.snp.layouts import SevFeatures, Vmcb, Vmsa
from veil.snp.memory import Memory
from veil.snp.rmp import FAULT_SIZEM, PageSize, Rmp, RmpResult
from veil.snp.view import View

PAGE, LARGE = PAGE_SIZE, PAGE_SIZE_2M
RAM = 4 * LARGE

MONITOR, MONITOR_SIZE = 3 * LARGE, LARGE // 2
SERVICES, SERVICES_SIZE = MONITOR + MONITOR_SIZE, LARGE // 2
(HEADER, PARAMETERS, MONITOR_VMSA, TEMPLATE, SECRETS, CPUID, KERNEL_VMSA) = (
    MONITOR + number * PAGE for number in range(7)
)
AP_VMSAS, SERVICE_VMSAS, GHCB, SHARED = (MONITOR + offset for offset in (0x10000, 0x18000, 0x20000, 0x30000))
#: In the services' region, if there are services; their memory is the rest.
SERVICE_PARAMETERS, BLOCKS, MAILBOX, SERVICE_HEADER, SERVICE_MEMORY = (
    SERVICES + offset for offset in (0, PAGE, 2 * PAGE, 0x30000, 0x31000)
)
MAILBOX_SIZE = 0x20000
#: where `ask` has each VCPU's request block
BLOCK, BLOCK_PAGES = 0x40000, 4
CPUID_PAGE = (b"cpuid" * 50).ljust(PAGE, b"\0")
KERNEL = 0x10000
KERNEL_SECRETS, KERNEL_CPUID, KERNEL_CAA = 0x108000, 0x109000, 0x10A000
#: guest memory that tests use: the last two in RMP entries of 2 MiB
SMALL, FREE, FREE_2M = 0x20000, LARGE, 2 * LARGE

SVME = int(Efer.SVME)
VMGEXIT, NPF = 0x403, 0x400
RUN_KERNEL, RUN_OK, RUN_REFUSED = run_vmpl_request(3), MsrResponse.RUN_VMPL, RUN_VMPL_REFUSED


class NoCipher:
    """DRAM in plain text; the monitor cannot tell."""

    def encrypt_page(self, gpa: int, data: bytes) -> bytes:
        return data

    def decrypt_page(self, gpa: int, data: bytes) -> bytes:
        return data


class Answer(NamedTuple):
    rax: int
    rcx: int
    rdx: int
    r8: int
    r9: int
    pending: int | None


class Terminated(Exception):
    """The monitor gave up: reason set, reason."""


def kernel_vmsa(**fields: int) -> bytes:
    values = {"vmpl": 3, "efer": SVME | 0xD00, "sev_features": SevFeatures.SNP, **fields}
    return bytes(Vmsa(**values)).ljust(PAGE, b"\0")


def parameters(**changes: object) -> MonitorParameters:
    launched = [(KERNEL, PAGE), (HEADER, CPUID + PAGE - HEADER)]
    values: dict[str, object] = {
        "vcpus": 1,
        "ram": [(0, RAM)],
        "launched": launched,
        "monitor": (MONITOR, MONITOR_SIZE),
        "services": (SERVICES, SERVICES_SIZE),
        "header_gpa": HEADER,
        "secrets_gpa": SECRETS,
        "cpuid_gpa": CPUID,
        "ghcb_gpa": GHCB,
        "shared": (SHARED, MIN_SHARED),
        "cpuid_digest": hashlib.sha256(CPUID_PAGE).digest(),
        "monitor_vmsas_gpa": AP_VMSAS,
        "template_gpa": TEMPLATE,
        "kernel_vmsa_gpa": KERNEL_VMSA,
        "kernel_secrets_gpa": KERNEL_SECRETS,
        "kernel_cpuid_gpa": KERNEL_CPUID,
        "kernel_caa_gpa": KERNEL_CAA,
    }
    return MonitorParameters.make(**{**values, **changes})  # type: ignore[arg-type]


def with_services(**changes: object) -> MonitorParameters:
    """The same with a services' domain."""
    launched = [(KERNEL, PAGE), (HEADER, CPUID + PAGE - HEADER), (SERVICE_PARAMETERS, PAGE), (SERVICE_HEADER, PAGE)]
    added: dict[str, object] = {
        "launched": launched, "service_code": (SERVICE_HEADER, PAGE), "service_vmsas_gpa": SERVICE_VMSAS,
        "mailbox_gpa": MAILBOX, "mailbox_size": MAILBOX_SIZE, "blocks_gpa": BLOCKS,
    }  # fmt: skip
    return parameters(**{**added, **changes})


class Vcpu:
    """A VCPU: its VMSAs and VMCBs by VMPL, and the monitor's generator."""

    def __init__(self) -> None:
        self.vmsas: dict[int, int] = {}
        self.vmcb = Vmcb()
        self.service_vmcb = Vmcb()
        self.cpu: HostedCpu | None = None
        self.steps: Generator[None, None, None] | None = None
        self.service_cpu: HostedCpu | None = None
        self.service_steps: Generator[None, None, None] | None = None
        self.vmpl = 0
        self.parked = False


class Channel:
    """The host's channel device, which enters the monitor on VCPU 0 as long as there is something for it."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.device = ChannelDevice(bench.host)
        self._bus = IoBus()
        self.device.attach(self._bus)

    def port_write(self, port: int, value: int, vmpl: int = 0) -> None:
        self._bus.write(port, 4, value, vmpl)

    def run(self) -> None:
        """Until VeilMon has nothing left to read."""
        while self.device.pending:
            self.device.entered()
            self._bench.enter(0)
            self.device.flush()


class Bench:
    """One machine."""

    def __init__(
        self,
        monitor: type[VeilMon] = VeilMon,
        *,
        vcpus: int = 1,
        template: bytes | None = None,
        options: Option = Option.NONE,
        layout: MonitorParameters | None = None,
        services: type[ServiceDomain] | None = None,
        settings: dict[str, dict[str, Any]] | None = None,
        owners: Sequence[bytes] = (),
        readers: Sequence[bytes] = (),
    ) -> None:
        self.memory = Memory(RAM)
        self.rmp = Rmp(RAM // PAGE)
        self.bus = GuestBus(self.memory, self.rmp, NoCipher())
        self.host = HostView(self.bus)
        self.monitor = monitor()
        self.vcpus = [Vcpu() for _ in range(vcpus)]
        self.features = 0x33
        self.splits = 0
        self.log: list[int] = []
        self.on_request: Callable[[int], int | None] = lambda request: None
        self.processor = GuestRequests(chip, cpuid_signature=0, report_version=3)
        self.on_message = self.carry
        self.launched = LaunchedGuest(1 << 17, bytes(48), bytes(32), LaunchIdentity())
        self.certificates = b"certificates"
        #: the contexts of VMPL 2 that the host knows, and whether it does as it is told about them
        self.enclaves: set[int] = set()
        self.takes_enclaves = True
        self.channel = Channel(self)
        make = parameters if services is None else with_services
        self.services = services() if services is not None else None
        self._settings = settings or {}
        layout = layout or make(vcpus=vcpus, options=options, owners=owners, readers=readers)
        self._launch(layout, template or kernel_vmsa())

    def _launch(self, layout: MonitorParameters, template: bytes) -> None:
        for gpa in range(0, RAM, LARGE):
            small = gpa in (0, MONITOR)
            size, count = (PageSize.SIZE_4K, 512) if small else (PageSize.SIZE_2M, 1)
            assert self.host.rmpupdate(gpa, assigned=True, size=size, count=count) == RmpResult.SUCCESS
        header = HostedHeader(parameters_gpa=PARAMETERS, parameters_length=ctypes.sizeof(layout))
        service_parameters = ServiceParameters.make(
            self._settings, vcpus=layout.vcpus, mailbox_gpa=MAILBOX, mailbox_size=MAILBOX_SIZE, blocks_gpa=BLOCKS,
            memory_gpa=SERVICE_MEMORY, memory_size=SERVICES + SERVICES_SIZE - SERVICE_MEMORY,
        )  # fmt: skip
        self._service_header = HostedHeader(
            parameters_gpa=SERVICE_PARAMETERS, parameters_length=ctypes.sizeof(service_parameters)
        )
        services = (
            ((SERVICE_PARAMETERS, bytes(service_parameters)), (SERVICE_HEADER, bytes(self._service_header)))
            if self.services is not None
            else ()
        )
        secrets = bytes(range(256)) * 16
        self.vmpcks = [secrets[start : start + 32] for start in range(0x20, 0xA0, 32)]
        monitor_vmsa = bytes(Vmsa(vmpl=0, efer=SVME, sev_features=SevFeatures.SNP, rip=HEADER))
        for gpa, data in (
            (KERNEL, b"kernel"),
            (HEADER, bytes(header)),
            (PARAMETERS, bytes(layout)),
            (MONITOR_VMSA, monitor_vmsa),
            (TEMPLATE, template),
            (SECRETS, secrets),
            (CPUID, CPUID_PAGE),
            *services,
        ):
            assert self.rmp.launch_page(gpa, vmsa=gpa == MONITOR_VMSA) == RmpResult.SUCCESS
            self.memory.buf[gpa : gpa + len(data)] = data
        self._header = header
        self.vcpus[0].vmsas[0] = MONITOR_VMSA

    # The host

    def boot(self) -> Bench:
        """Run the monitor until the kernel can start, and every other VCPU until it waits."""
        self.enter(0)
        for index in range(1, len(self.vcpus)):
            self.enter(index)
        return self

    def hosted_cpu(self, vcpu: Vcpu) -> HostedCpu:
        """What the monitor sees of a VCPU."""
        gpa = vcpu.vmsas[0]
        (rdi,) = struct.unpack_from("<Q", self.memory.buf, gpa + Vmsa.rdi.offset)
        return HostedCpu(self.view(0), gpa, rdi, self._header, vcpu.vmcb)

    def resume(self, monitor: VeilMon, services: ServiceDomain | None = None) -> None:
        """Another monitor (and services), restored from a snapshot, takes over; the machine has made new VMPCKs."""
        self.monitor = monitor
        for vmpl in range(3):
            key = self.vmpcks[vmpl] = os.urandom(32)
            self.processor.restart(vmpl)
            self.memory.buf[SECRETS + 0x20 + vmpl * 32 : SECRETS + 0x40 + vmpl * 32] = key
        if services is not None:
            self.services = services
            for vcpu in self.vcpus:
                if vcpu.service_cpu is not None:
                    vcpu.service_steps = services.resume(vcpu.service_cpu)
        for vcpu in self.vcpus:
            if 0 in vcpu.vmsas and vcpu.steps is not None:
                vcpu.cpu = self.hosted_cpu(vcpu)
                vcpu.steps = monitor.resume(vcpu.cpu)

    def enter(self, index: int, vmpl: int = 0) -> None:
        """Run the monitor (or the services) on a VCPU until it wants its kernel context run, or waits."""
        vcpu = self.vcpus[index]
        vcpu.vmpl, vcpu.parked = vmpl, False
        if vcpu.steps is None:
            vcpu.cpu = self.hosted_cpu(vcpu)
            vcpu.steps = self.monitor.run(vcpu.cpu)
        while vcpu.vmpl != 3 and not vcpu.parked:
            hosted = vcpu.vmpl
            self.rmp.vmsa_in_use = vcpu.vmsas[hosted]
            try:
                next(vcpu.steps if hosted == 0 else self._service_steps(vcpu))
            finally:
                self.rmp.vmsa_in_use = None
            self._exit(vcpu, hosted)

    def _service_steps(self, vcpu: Vcpu) -> Generator[None, None, None]:
        if vcpu.service_steps is None:
            assert self.services is not None
            gpa = vcpu.vmsas[1]
            vmsa = self.vmsa(gpa)
            assert (vmsa.vmpl, vmsa.rip) == (1, SERVICE_HEADER)
            vcpu.service_cpu = HostedCpu(self.view(1), gpa, vmsa.rdi, self._service_header, vcpu.service_vmcb)
            vcpu.service_steps = self.services.run(vcpu.service_cpu)
        return vcpu.service_steps

    def _exit(self, vcpu: Vcpu, hosted: int) -> None:
        if hosted == 1:
            request = vcpu.service_vmcb.ghcb_gpa
            self.log.append(request)
            answer = self.on_request(request)
            vcpu.service_vmcb.ghcb_gpa = answer if answer is not None else self._msr(vcpu, request)
            return
        cpu = vcpu.cpu
        assert cpu is not None
        if cpu.fault is not None:
            assert cpu.fault.fault & FAULT_SIZEM
            assert self.host.psmash(cpu.fault.gpa & -LARGE) == RmpResult.SUCCESS
            cpu.fault = None
            self.splits += 1
            return
        request = vcpu.vmcb.ghcb_gpa
        self.log.append(request)
        answer = self.on_request(request)
        vcpu.vmcb.ghcb_gpa = answer if answer is not None else self._msr(vcpu, request)

    def _msr(self, vcpu: Vcpu, request: int) -> int:
        code, gpa = request & MSR_INFO_MASK, request & ((1 << 52) - PAGE)
        if code == 0x000:
            return self._ghcb(gpa)
        if code == MsrRequest.AP_RESET_HOLD:
            vcpu.parked = True
            return MsrResponse.AP_RESET_HOLD
        if code == MsrRequest.REGISTER_GPA:
            return gpa | MsrResponse.REGISTER_GPA
        if code == MsrRequest.PAGE_STATE_CHANGE:
            assert request >> MSR_PAGE_OPERATION_SHIFT == PageOperation.SHARED
            done = self.host.rmpupdate(gpa, assigned=False) == RmpResult.SUCCESS
            return (0 if done else MSR_ERROR) | MsrResponse.PAGE_STATE_CHANGE
        if code == MsrRequest.RUN_VMPL:
            vmpl = request >> 32
            if vmpl not in vcpu.vmsas:
                return RUN_REFUSED
            vcpu.vmpl = vmpl
            return RUN_OK
        if code == MsrRequest.HV_FEATURES:
            return self.features << 12 | MsrResponse.HV_FEATURES
        if code == MsrRequest.TERMINATE:
            raise Terminated(request >> 12 & 0xF, request >> 16 & 0xFF)
        raise AssertionError(f"MSR request {request:#x}")

    def _ghcb(self, gpa: int) -> int:
        code, exit_info_1, exit_info_2 = struct.unpack("<3Q", self.host.read(gpa + GhcbField.SW_EXITCODE, 24))
        rax, rbx = self.host.read_u64(gpa + GhcbField.RAX), self.host.read_u64(gpa + GhcbField.RBX)
        self.host.write_u64(gpa + GhcbField.SW_EXITINFO1, 0)
        self.host.write_u64(gpa + GhcbField.SW_EXITINFO2, 0)
        if code == NaeEvent.IOIO:
            self.channel.port_write(exit_info_1 >> 16, rax)
        elif code in (NaeEvent.GUEST_REQUEST, NaeEvent.EXTENDED_GUEST_REQUEST):
            errors, needed = self.on_message(
                exit_info_1, exit_info_2, (rax, rbx) if code == NaeEvent.EXTENDED_GUEST_REQUEST else None
            )
            self.host.write_u64(gpa + GhcbField.SW_EXITINFO2, errors)
            self.host.write_u64(gpa + GhcbField.RBX, needed)
        else:
            assert code == NaeEvent.AP_CREATION
            if exit_info_1 >> 16 & 0xF == ENCLAVE_VMPL:
                self._enclave(gpa, exit_info_1 & 0xFFFF, exit_info_2)
                return gpa
            assert exit_info_1 & 0xFFFF == ApRequest.CREATE
            self.vcpus[exit_info_1 >> 32].vmsas[exit_info_1 >> 16 & 0xF] = exit_info_2
        return gpa

    def _enclave(self, ghcb: int, request: int, vmsa: int) -> None:
        if not self.takes_enclaves:
            self.host.write(ghcb + GhcbField.SW_EXITINFO1, struct.pack("<Q", 2))
        elif request == ApRequest.CREATE:
            self.enclaves.add(vmsa)
        else:
            assert request == ApRequest.DESTROY
            self.enclaves.remove(vmsa)

    def carry(self, request: int, response: int, data: tuple[int, int] | None) -> tuple[int, int]:
        """What an honest host does with a guest message: (errors, pages needed)."""
        if data is not None:
            gpa, pages = data
            needed = -(-len(self.certificates) // PAGE)
            if pages < needed:
                return 1 << 32, needed
            if self.certificates:
                self.host.write(gpa, self.certificates)
        status, answer = self.processor.handle(self.host.read(request, PAGE), self.vmpcks, self.launched)
        if answer:
            self.host.write(response, answer)
        return int(status), 0

    # The guest

    def view(self, vmpl: int) -> View:
        """Memory as a level may use it."""
        return View(self.bus, vmpl)

    @property
    def kernel(self) -> View:
        """Memory as the kernel may use it."""
        return self.view(3)

    def vmsa(self, gpa: int) -> Vmsa:
        """The VMSA at an address, live: what VMRUN loads and stores."""
        return Vmsa.from_buffer(self.memory.buf, gpa)

    def caa(self, index: int = 0) -> int:
        """The calling area of a VCPU."""
        caa = self.monitor.domains.vcpus[index].kernel.caa
        assert caa is not None
        return caa

    def call(
        self, protocol: int, call: int, rcx: int = 0, rdx: int = 0, r8: int = 0, r9: int = 0, *, vcpu: int = 0
    ) -> Answer:
        """An SVSM call of the kernel on a VCPU."""
        gpa = self.vcpus[vcpu].vmsas[3]
        caa = self.caa(vcpu)
        self.kernel.write_u8(caa, 1)
        vmsa = self.vmsa(gpa)
        vmsa.guest_exit_code, vmsa.rax = VMGEXIT, protocol << 32 | call
        vmsa.rcx, vmsa.rdx, vmsa.r8, vmsa.r9 = rcx, rdx, r8, r9
        self.enter(vcpu)
        assert self.rmp.is_vmsa(gpa)
        assert vmsa.efer & SVME
        pending = self.kernel.read_u8(caa) if self.kernel.allows(caa, 1) else None
        return Answer(vmsa.rax, vmsa.rcx, vmsa.rdx, vmsa.r8, vmsa.r9, pending)

    def register(self, vcpu: int = 0) -> int:
        """Register a request block for a VCPU; returns its address."""
        gpa = BLOCK + vcpu * BLOCK_PAGES * PAGE
        assert self.call(16, 0, gpa, BLOCK_PAGES, vcpu=vcpu).rax == ResultCode.SUCCESS
        return gpa

    def ask(
        self, service: int, call: int, body: bytes = b"", *, vcpu: int = 0, pages: Sequence[int] = ()
    ) -> tuple[Status, bytes]:
        """The kernel asks a service."""
        known = self.monitor.state.blocks.get(vcpu)
        gpa = known[0] if known is not None else self.register(vcpu)
        write_request(self.kernel, gpa, BLOCK_PAGES * PAGE, BlockRequest(service, call, body, pages=tuple(pages)))
        self.enter(vcpu, vmpl=1)
        answer = read_answer(self.kernel, gpa, BLOCK_PAGES * PAGE)
        assert answer is not None
        return answer

    def pvalidate(self, *entries: int, at: int | None = None, first: int = 0) -> tuple[int, int]:
        """SVSM PVALIDATE of a list; the result code and `next`."""
        at = self.caa() + 8 if at is None else at
        self.kernel.write(at, struct.pack(f"<HHI{len(entries)}Q", len(entries), first, 0, *entries))
        rax = self.call(0, 1, at).rax
        return rax, self.kernel.read_u16(at + 2)

    def create_vcpu(self, vmsa: int, caa: int, apic_id: int, *, vcpu: int = 0) -> int:
        """CREATE_VCPU of a page that the kernel filled already, and AP creation at the host."""
        rax = self.call(0, 2, vmsa, caa, apic_id, vcpu=vcpu).rax
        if rax == ResultCode.SUCCESS:
            self.vcpus[apic_id].vmsas[3] = vmsa
        return rax

    # What must hold

    def check(self) -> None:
        """No level has a permission that it must not have, whatever was asked."""
        table = self.rmp.effective()
        perms, flags = table["perms"], table["flags"]
        protected = np.zeros(len(table), dtype=bool)
        protected[MONITOR // PAGE : RAM // PAGE] = True
        vmsas = (flags & 4) != 0
        assert not perms[protected, 3].any(), "VMPL 3 reaches the monitor or the services"
        assert not perms[:, 2].any(), "VMPL 2 has memory"
        services = np.zeros(len(table), dtype=bool)
        services[SERVICES // PAGE : RAM // PAGE] = True
        for gpa, size in self.monitor.state.blocks.values():
            services[gpa // PAGE : (gpa + size) // PAGE] = True
        assert not perms[~services, 1].any(), "VMPL 1 has memory that belongs to no service"
        assert not (perms[vmsas, 3] & ~np.uint8(1)).any(), "VMPL 3 writes or executes a VMSA"
        # Every VMSA is one that the monitor made or checked.
        domains = self.monitor.domains
        known = {vmsa for vcpu in domains.vcpus for mine in vcpu.contexts.values() for vmsa in mine.vmsas}
        known |= domains.enclaves
        assert {int(page) * PAGE for page in np.flatnonzero(vmsas)} == known
        for vcpu in domains.vcpus:
            for vmsa, caa in vcpu.kernel.vmsas.items():
                assert self.vmsa(vmsa).vmpl == 3
                assert caa is not None
                assert self.kernel.allows(caa, 3, 8), "a calling area is gone"
        # All protected pages but the shared ones stay validated memory of the guest: the host cannot exchange them.
        protected[GHCB // PAGE : GHCB // PAGE + len(self.vcpus)] = False
        protected[SHARED // PAGE : (SHARED + MIN_SHARED) // PAGE] = False
        assert ((flags[protected] & 3) == 3).all()
