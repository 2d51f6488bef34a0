# SPDX-License-Identifier: GPL-2.0-or-later
"""From launch to a kernel that can start, on a host that plays by the rules and on hosts that do not."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable

import pytest

from tests.monitor.harness import (
    AP_VMSAS,
    CPUID,
    CPUID_PAGE,
    FREE,
    FREE_2M,
    GHCB,
    HEADER,
    KERNEL,
    KERNEL_CAA,
    KERNEL_CPUID,
    KERNEL_SECRETS,
    KERNEL_VMSA,
    LARGE,
    MONITOR,
    MONITOR_VMSA,
    PAGE,
    PARAMETERS,
    RAM,
    RUN_KERNEL,
    RUN_REFUSED,
    SECRETS,
    SERVICES,
    SERVICES_SIZE,
    SMALL,
    TEMPLATE,
    Bench,
    Terminated,
    kernel_vmsa,
    parameters,
)
from veil.formats.domains import Domain
from veil.formats.termination import MonitorReason, ReasonSet
from veil.monitor import MonitorError, MonitorParameters, Option, Owner
from veil.snp.errors import RmpViolation
from veil.snp.layouts import Vmsa
from veil.snp.rmp import PageSize, RmpResult


@pytest.fixture
def bench() -> Bench:
    return Bench().boot()


def test_kernel_gets_all_memory_but_the_protected(bench: Bench) -> None:
    bench.check()
    kernel = bench.kernel
    for gpa in (0, KERNEL, SMALL, FREE, FREE_2M, MONITOR - PAGE):
        assert kernel.allows(gpa, 15, PAGE)
    assert kernel.allows(0, 15, MONITOR)
    for gpa in (HEADER, PARAMETERS, TEMPLATE, SECRETS, CPUID, GHCB, KERNEL_VMSA, MONITOR_VMSA, SERVICES, RAM - PAGE):
        for access in (1, 2, 4, 8):
            assert not kernel.allows(gpa, access)


def test_large_entries_stay_large(bench: Bench) -> None:
    assert bench.view(0).rmpquery(FREE, vmpl=3).size == PageSize.SIZE_2M
    assert bench.splits == 0


def test_services_region_is_of_vmpl_1(bench: Bench) -> None:
    service = bench.view(1)
    assert service.allows(SERVICES, 3, SERVICES_SIZE)
    assert not service.allows(SERVICES, 4)
    assert not service.allows(MONITOR, 1)
    assert not service.allows(FREE, 1)


def test_secrets_page_without_the_keys_of_higher_levels(bench: Bench) -> None:
    page = bench.kernel.read(KERNEL_SECRETS, PAGE)
    original = bytes(range(256)) * 16
    assert page[:0x20] == original[:0x20]
    assert page[0x20:0x80] == bytes(0x60)
    assert page[0x80:0x140] == original[0x80:0x140]
    fields = struct.unpack_from("<QQQIB", page, 0x140)
    assert fields == (MONITOR, RAM - MONITOR, KERNEL_CAA, 1, 3)
    assert page[0x15D:] == original[0x15D:]


def test_other_pages_of_the_kernel(bench: Bench) -> None:
    assert bench.kernel.read(KERNEL_CPUID, 5) == b"cpuid"
    assert bench.kernel.read(KERNEL_CAA, PAGE) == bytes(PAGE)
    assert bench.kernel.read(KERNEL, 6) == b"kernel"
    assert bench.rmp.is_vmsa(KERNEL_VMSA)
    assert bytes(bench.memory.buf[KERNEL_VMSA : KERNEL_VMSA + PAGE]) == kernel_vmsa()
    assert bench.vcpus[0].vmsas == {0: MONITOR_VMSA, 3: KERNEL_VMSA}
    assert bench.monitor.domains.vcpus[0].vmsas() == {Domain.MON: MONITOR_VMSA, Domain.UNT: KERNEL_VMSA}


def test_memory_that_the_host_filled_is_zero() -> None:
    bench = Bench()
    bench.memory.buf[FREE : FREE + 6] = b"secret"
    bench.memory.buf[SERVICES : SERVICES + 6] = b"secret"
    bench.boot()
    assert bench.kernel.read(FREE, 6) == bytes(6)
    assert bench.view(1).read(SERVICES, 6) == bytes(6)


def test_book(bench: Bench) -> None:
    book = bench.monitor.book
    assert book.owner(KERNEL) == Owner.KERNEL
    assert book.owner(MONITOR) == Owner.MONITOR
    assert book.owner(SERVICES) == Owner.SERVICE
    assert book.owner(KERNEL_VMSA) == Owner.BOOT_VMSA
    assert book.owner(KERNEL_CAA) == Owner.CAA
    assert book.owner(RAM) == book.owner(-1) == Owner.NOBODY
    assert book.count(Owner.BOOT_VMSA) == book.count(Owner.CAA) == 1
    assert not book.is_kernel(-PAGE, PAGE)
    assert not book.is_kernel(MONITOR - PAGE, 2 * PAGE)
    assert not book.is_kernel(0, 0)
    assert not book.is_kernel(RAM - PAGE, 2 * PAGE)
    assert book.is_kernel_data(KERNEL_CAA - PAGE, 3 * PAGE)
    assert not book.is_kernel(KERNEL_CAA - PAGE, 3 * PAGE)
    with pytest.raises(ValueError, match="outside"):
        book.claim(RAM, PAGE, Owner.KERNEL)


def test_large_pages_that_the_host_split_before() -> None:
    bench = Bench()
    assert bench.host.psmash(FREE_2M) == RmpResult.SUCCESS
    bench.boot()
    assert bench.kernel.allows(FREE_2M, 15, LARGE)


def test_large_entry_over_the_edge_of_a_region() -> None:
    """2 MiB entries that cover the monitor's region and more are split by the host when the monitor needs it."""
    layout = parameters(services=(SERVICES, SERVICES_SIZE // 2))
    bench = Bench(layout=layout).boot()
    assert bench.kernel.allows(SERVICES + SERVICES_SIZE // 2, 15, SERVICES_SIZE // 2)
    assert not bench.kernel.allows(SERVICES, 1)
    layout = parameters(kernel_vmsa_gpa=FREE)
    bench = Bench(layout=layout).boot()
    assert bench.splits == 1
    assert bench.rmp.is_vmsa(FREE)
    assert not bench.kernel.allows(FREE, 1)
    assert bench.kernel.allows(FREE + PAGE, 15)


def test_other_vcpus_wait() -> None:
    bench = Bench(vcpus=3).boot()
    for index in (1, 2):
        assert bench.vcpus[index].parked
        assert bench.vcpus[index].vmsas == {0: AP_VMSAS + (index - 1) * PAGE}
        assert bench.monitor.domains.vcpus[index].vmsas()[Domain.MON] == AP_VMSAS + (index - 1) * PAGE
    bench.check()
    # The host runs one without reason: it waits again.
    bench.enter(1)
    assert bench.vcpus[1].parked


def test_unprotected_option_opens_the_monitor() -> None:
    bench = Bench(options=Option.UNPROTECTED).boot()
    assert bench.kernel.allows(MONITOR, 15)
    assert bench.kernel.allows(KERNEL_VMSA, 3)
    assert bench.kernel.allows(SERVICES, 15, SERVICES_SIZE)
    assert bench.call(0, 6, 0 << 32 | 1).rcx == 1 << 32 | 1


# Hostile or broken hosts and images


def terminated(bench: Bench, reason: MonitorReason) -> None:
    with pytest.raises(Terminated) as caught:
        bench.boot()
    assert caught.value.args == (ReasonSet.MONITOR, reason)
    assert bench.monitor.last_error


def test_page_validated_before() -> None:
    bench = Bench()
    assert bench.rmp.launch_page(SMALL) == RmpResult.SUCCESS
    terminated(bench, MonitorReason.MEMORY_ALREADY_VALIDATED)


def test_page_not_assigned_is_the_hosts_to_mend() -> None:
    bench = Bench()
    assert bench.host.rmpupdate(SMALL, assigned=False) == RmpResult.SUCCESS
    with pytest.raises(RmpViolation):
        bench.boot()


@pytest.mark.parametrize(
    "template", [kernel_vmsa(vmpl=0), kernel_vmsa(vmpl=2), kernel_vmsa(efer=0xD00), kernel_vmsa(sev_features=0)]
)
def test_bad_template(template: bytes) -> None:
    terminated(Bench(template=template), MonitorReason.BAD_KERNEL_VMSA)


def test_host_without_features() -> None:
    bench = Bench()
    bench.features = 0x03
    terminated(bench, MonitorReason.HOST_LACKS_FEATURES)


@pytest.mark.parametrize("request_code", [0x012, 0x014, 0x080])
@pytest.mark.parametrize("answer", [0, 0x123, (1 << 64) - 1])
def test_host_answers_nonsense(request_code: int, answer: int) -> None:
    bench = Bench()
    bench.on_request = lambda request: answer if request & 0xFFF == request_code else None
    with pytest.raises(Terminated) as caught:
        bench.boot()
    assert caught.value.args[0] == ReasonSet.MONITOR


@pytest.mark.parametrize("error", [1, 2, 0xFFFFFFFF])
def test_host_refuses_ap_creation(error: int) -> None:
    bench = Bench()

    def refuse(request: int) -> int | None:
        if request & 0xFFF:
            return None
        bench.host.write_u64(GHCB + 0x398, error)
        return request

    bench.on_request = refuse
    terminated(bench, MonitorReason.HOST_REFUSED)


def test_host_refuses_to_share_the_ghcb() -> None:
    bench = Bench()
    bench.on_request = lambda request: 1 << 32 | 0x015 if request & 0xFFF == 0x014 else None
    terminated(bench, MonitorReason.HOST_REFUSED)


def test_cpuid_page_of_the_hosts_choice() -> None:
    """The launch digest does not cover it."""
    bench = Bench()
    bench.memory.buf[CPUID + 20] ^= 1
    terminated(bench, MonitorReason.CPUID_CHANGED)
    honest = Bench().boot()
    assert honest.kernel.read(KERNEL_CPUID, PAGE) == CPUID_PAGE


def test_host_refuses_to_run_the_kernel() -> None:
    """The VCPU waits, instead of asking again and again; when the host comes back it tries once more."""
    bench = Bench()
    bench.on_request = lambda request: RUN_REFUSED if request == RUN_KERNEL else None
    bench.boot()
    assert bench.vcpus[0].parked
    assert bench.log.count(RUN_KERNEL) == 1
    bench.on_request = lambda request: None
    bench.enter(0)
    assert bench.vcpus[0].vmpl == 3


def test_ap_started_twice_or_elsewhere() -> None:
    bench = Bench(vcpus=2)
    bench.boot()
    Vmsa.from_buffer(bench.memory.buf, AP_VMSAS).rdi = 0
    bench.vcpus[1].steps = None
    with pytest.raises(Terminated):
        bench.enter(1)


BAD: list[Callable[[MonitorParameters], object]] = [
    lambda p: setattr(p, "magic", 1),
    lambda p: setattr(p, "version", 1),
    lambda p: setattr(p, "vcpus", 0),
    lambda p: setattr(p, "vcpus", 65),
    lambda p: setattr(p, "ram_count", 0),
    lambda p: setattr(p, "ram_count", 5),
    lambda p: setattr(p, "launched_count", 97),
    lambda p: setattr(p, "options", 4),
    lambda p: setattr(p.monitor, "gpa", MONITOR + 1),
    lambda p: setattr(p.monitor, "size", 0),
    lambda p: setattr(p.monitor, "size", RAM),
    lambda p: setattr(p.services, "gpa", MONITOR),
    lambda p: setattr(p.services, "gpa", RAM),
    lambda p: setattr(p.ram[0], "size", 0),
    lambda p: setattr(p.launched[0], "gpa", 1 << 63),
    lambda p: setattr(p, "header_gpa", KERNEL),
    lambda p: setattr(p, "ghcb_gpa", MONITOR + 8),
    lambda p: setattr(p, "monitor_vmsas_gpa", SERVICES + PAGE),
    lambda p: setattr(p, "kernel_vmsa_gpa", RAM),
    lambda p: setattr(p, "kernel_caa_gpa", KERNEL_SECRETS),
    lambda p: setattr(p, "kernel_caa_gpa", MONITOR + 0x20000),
    lambda p: setattr(p, "ghcb_gpa", SERVICES - PAGE + 1),
    lambda p: setattr(p, "owner_count", 9),
    lambda p: setattr(p, "reader_count", 9),
    lambda p: setattr(p.shared, "gpa", SERVICES),
    lambda p: setattr(p.shared, "size", PAGE),
    lambda p: setattr(p.shared, "gpa", p.shared.gpa + 8),
    lambda p: setattr(p, "kernel_secrets_gpa", SERVICES),
    lambda p: setattr(p, "kernel_cpuid_gpa", 12),
]


@pytest.mark.parametrize("spoil", BAD)
def test_bad_parameters(spoil: Callable[[MonitorParameters], object]) -> None:
    layout = parameters()
    MonitorParameters.parse(bytes(layout))
    spoil(layout)
    with pytest.raises(MonitorError) as caught:
        MonitorParameters.parse(bytes(layout))
    assert caught.value.reason == MonitorReason.BAD_PARAMETERS
    terminated(Bench(layout=layout), MonitorReason.BAD_PARAMETERS)


def test_parameters_cut_short() -> None:
    with pytest.raises(MonitorError, match="cut short"):
        MonitorParameters.parse(bytes(ctypes.sizeof(MonitorParameters) - 1))


def test_too_many_ranges() -> None:
    with pytest.raises(MonitorError, match="more than"):
        parameters(ram=[(0, PAGE)] * 5)


def test_no_state_before_boot() -> None:
    with pytest.raises(MonitorError, match="not booted"):
        _ = Bench().monitor.state
