# SPDX-License-Identifier: GPL-2.0-or-later
"""Launch: what the host tells the RMP and the secure processor, and which images it refuses."""

from __future__ import annotations

import pytest

from tests.host.fakes import MEMORY, PAGE, PAGE_2M, FakeMachine, FakePlatform, FakeView
from veil.formats.launch_digest import PageType
from veil.host import Hypervisor, LaunchRefused, LaunchRegion, RunState, SharedPages
from veil.host.launch import DEFAULT_POLICY, assign_ram
from veil.snp.errors import LaunchError
from veil.snp.layouts import Vmsa
from veil.snp.rmp import PageSize, RmpResult

VMSA_REGION = LaunchRegion(0x1000, PageType.VMSA, b"vmsa")


def _asking_for(features: int) -> LaunchRegion:
    return LaunchRegion(0x1000, PageType.VMSA, bytes(Vmsa(sev_features=1 | features)))


def host(machine: FakeMachine, vcpus: int = 1) -> Hypervisor:
    return Hypervisor(machine, FakePlatform(), vcpus)


def test_commands_in_the_order_of_the_image() -> None:
    machine = FakeMachine()
    image = [
        LaunchRegion(0x20_0000, PageType.NORMAL, b"x" * 5000, permissions=(0, 0, 15)),
        LaunchRegion(0x2000, PageType.CPUID, b"c" * PAGE),
        LaunchRegion(0x3000, PageType.SECRETS, size=PAGE),
        LaunchRegion(0x4000, PageType.ZERO, size=3 * PAGE),
        LaunchRegion(0x8000, PageType.UNMEASURED, b"u"),
        VMSA_REGION,
    ]
    guest = host(machine)
    guest.launch(image, host_data=b"h" * 32)
    assert machine.secure_processor.log == [
        ("start", DEFAULT_POLICY),
        ("update", 0x20_0000, 2 * PAGE, 1, (0, 0, 15)),
        ("update", 0x2000, PAGE, 6, (0, 0, 0)),
        ("update", 0x3000, PAGE, 5, (0, 0, 0)),
        ("update", 0x4000, 3 * PAGE, 3, (0, 0, 0)),
        ("update", 0x8000, PAGE, 4, (0, 0, 0)),
        ("vmsa", 0x1000, PAGE),
        ("finish", b"h" * 32),
    ]
    assert all(machine.view.private)
    vcpu = guest.vcpus[0]
    assert (vcpu.vmpl, vcpu.state) == (0, RunState.RUNNABLE)


def test_large_zero_region_in_pieces() -> None:
    machine = FakeMachine()
    host(machine).launch([VMSA_REGION, LaunchRegion(0x2000, PageType.ZERO, size=MEMORY - 0x2000)])
    updates = [command for command in machine.secure_processor.log if command[0] == "update"]
    assert [gpa for _, gpa, *_ in updates] == [0x2000, 0x20_2000]
    assert sum(size for _, _, size, *_ in updates) == MEMORY - 0x2000


def test_large_pages_and_pages_that_stay_the_hosts() -> None:
    machine = FakeMachine()
    large = LaunchRegion(PAGE_2M, PageType.NORMAL, b"x", size=PAGE_2M, large=True)
    host(machine).launch([VMSA_REGION, large], shared=[SharedPages(0x5000, b"s", 2 * PAGE)])
    assert ("update", PAGE_2M, PAGE_2M, 1, (0, 0, 0)) in machine.secure_processor.log
    assert [page for page, private in enumerate(machine.view.private) if not private] == [5, 6]
    assert machine.view.read(0x5000, 2) == b"s\0"
    for wrong in (LaunchRegion(PAGE_2M, PageType.NORMAL, b"x", large=True), SharedPages(0x1000, b"s")):
        regions = [VMSA_REGION, *([wrong] if isinstance(wrong, LaunchRegion) else [])]
        shared = [wrong] if isinstance(wrong, SharedPages) else []
        with pytest.raises(LaunchRefused, match=r"not whole pages of 2 MiB|two launch regions overlap"):
            host(FakeMachine()).launch(regions, shared=shared)


def test_other_vcpus_wait_for_sipi() -> None:
    guest = host(FakeMachine(), 2)
    guest.launch([VMSA_REGION, LaunchRegion(0x2000, PageType.VMSA, b"v", vcpu=1)])
    assert guest.vcpus[1].state == RunState.WAIT_SIPI
    guest.sipi(1)
    assert (guest.vcpus[1].vmpl, guest.vcpus[1].state) == (0, RunState.RUNNABLE)


def test_entry_sizes() -> None:
    view = FakeView(8 * PAGE_2M)
    ram = [(0, 3 * PAGE_2M), (4 * PAGE_2M, 3 * PAGE_2M + PAGE)]
    assign_ram(view, ram, [LaunchRegion(PAGE_2M + PAGE, PageType.ZERO, size=PAGE)])
    large, small = PageSize.SIZE_2M, PageSize.SIZE_4K
    assert view.log == [
        ("rmpupdate", 0, True, large, 1),
        ("rmpupdate", PAGE_2M, True, small, 512),
        ("rmpupdate", 2 * PAGE_2M, True, large, 1),
        ("rmpupdate", 4 * PAGE_2M, True, large, 3),
        ("rmpupdate", 7 * PAGE_2M, True, small, 1),
    ]
    assert sum(view.private) == 6 * 512 + 1


def test_region_over_a_boundary() -> None:
    view = FakeView(3 * PAGE_2M)
    assign_ram(view, [(0, 3 * PAGE_2M)], [LaunchRegion(PAGE_2M - PAGE, PageType.ZERO, size=2 * PAGE)])
    assert view.large == {1024}
    assert all(view.private)


@pytest.mark.parametrize(
    ("regions", "words"),
    [
        ([], "no VMSA"),
        ([LaunchRegion(0x1001, PageType.NORMAL, b"x")], "page aligned"),
        ([LaunchRegion(0x1000, PageType.NORMAL)], "length positive"),
        ([LaunchRegion(MEMORY - PAGE, PageType.ZERO, size=2 * PAGE)], "give the guest more"),
        ([LaunchRegion(0, PageType.ZERO, size=2 * PAGE), VMSA_REGION], "overlap at 0x1000"),
        ([LaunchRegion(0x1000, PageType.VMSA, b"v", vcpu=1)], "a VMSA is one page"),
        ([LaunchRegion(0x1000, PageType.VMSA, b"v", vmpl=4)], "a VMSA is one page"),
        ([_asking_for(1 << 1)], "SEV_FEATURES ask for what this processor does not have: virtual tom$"),
        ([_asking_for(1 << 1 | 1 << 9 | 1 << 40)], "not have: virtual tom, secure tsc, 0x10000000000$"),
        ([LaunchRegion(0x1000, PageType.VMSA, bytes(PAGE + 1))], "a VMSA is one page"),
    ],
)
def test_refused(regions: list[LaunchRegion], words: str) -> None:
    with pytest.raises(LaunchRefused, match=words):
        host(FakeMachine()).launch(regions)


def test_rmp_and_firmware_errors_are_one_line() -> None:
    machine = FakeMachine()
    machine.view.refuse = RmpResult.FAIL_INUSE
    with pytest.raises(LaunchRefused, match="FAIL_INUSE"):
        host(machine).launch([VMSA_REGION])

    class Refusing:
        def launch_start(self, policy: int) -> None:
            raise LaunchError("policy bit 17 must be one")

    machine = FakeMachine()
    machine.secure_processor = Refusing()
    with pytest.raises(LaunchRefused, match="bit 17"):
        host(machine).launch([VMSA_REGION])
