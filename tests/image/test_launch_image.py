# SPDX-License-Identifier: GPL-2.0-or-later
"""The image of a kernel that starts by itself: what is in it, in which order, and what its digest covers."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from sevsnpmeasure.gctx import GCTX

from tests.guest.linux.images import elf
from veil.formats.domains import KERNEL_VMPL, MONITOR_VMPL
from veil.formats.launch_digest import PageType
from veil.formats.log_settings import LogSettings
from veil.formats.page_sizes import PAGE_SIZE
from veil.guest.elf import parse_kernel
from veil.host import DEFAULT_POLICY
from veil.host.launch import load_image
from veil.image.launch_image import LaunchImage, build_image, cpuid_page
from veil.image.monitor_image import MONITOR_SIZE
from veil.image.services_image import PROTECTED_SERVICES, protected_services
from veil.snp import LaunchError, Machine
from veil.snp.cpuid import CpuidEntryValues
from veil.snp.layouts import CpuidPage, Vmsa

_MEMORY = 128 << 20
_KERNEL = parse_kernel(elf(), "made-up")


def _image(**changed: Any) -> LaunchImage:
    with Machine(_MEMORY) as machine:
        cpuid = machine.cpuid_entries(2)
    chosen: dict[str, Any] = {
        "memory": _MEMORY,
        "vcpus": 2,
        "monitor": True,
        "cpuid": cpuid,
        "services": None,
        **changed,
    }
    return build_image(_KERNEL, chosen.pop("initramfs", b"initramfs"), chosen.pop("line", "quiet"), **chosen)


def _expected(image: LaunchImage) -> bytes:
    """What another program makes of the same pages."""
    gctx = GCTX()
    for region in image.regions:
        data = region.data.ljust(region.length, b"\0")
        if region.kind == PageType.NORMAL:
            gctx.update_normal_pages(region.gpa, data)
        elif region.kind == PageType.VMSA:
            gctx.update_vmsa_page(data)
        elif region.kind == PageType.SECRETS:
            gctx.update_secrets_page(region.gpa)
        else:
            assert region.kind == PageType.CPUID
            gctx.update_cpuid_page(region.gpa)
    found = gctx.ld()
    assert isinstance(found, bytes)
    return found


@pytest.mark.parametrize("monitor", [True, False])
def test_features_of_all_vmsas(monitor: bool) -> None:
    """The kernel's, VeilMon's, and the one that VeilMon makes the kernel's from: they agree, as KVM wants it."""
    image = _image(monitor=monitor, sev_features=0x21)
    vmsas = [region for region in image.regions if region.kind == PageType.VMSA or region.name == "kernel VMSA"]
    assert [Vmsa.from_buffer_copy(region.data).sev_features for region in vmsas] == [0x21] * (1 + monitor)


@pytest.mark.parametrize("monitor", [True, False])
def test_digest_of_the_launched_machine(monitor: bool) -> None:
    image = _image(monitor=monitor)
    assert image.digest() == _expected(image)
    with Machine(_MEMORY) as machine:
        load_image(
            machine.host_view(), machine.secure_processor, machine.ram_ranges, image.regions,
            vcpus=2, policy=DEFAULT_POLICY, host_data=bytes(32),
        )  # fmt: skip
        assert machine.secure_processor.measurement == image.digest()


@pytest.mark.parametrize("services", [None, PROTECTED_SERVICES])
def test_regions_are_pages_that_do_not_overlap(services: Any) -> None:
    regions = sorted(_image(services=services).regions, key=lambda region: region.gpa)
    assert all(region.gpa % PAGE_SIZE == region.length % PAGE_SIZE == 0 for region in regions)
    assert all(one.gpa + one.length <= other.gpa for one, other in itertools.pairwise(regions))
    assert regions[-1].gpa + regions[-1].length <= _MEMORY


def test_who_runs_first() -> None:
    """VeilMon, if there is one: then the kernel's VMSA is a page of VeilMon's that has yet to become one."""
    below, alone = _image(), _image(monitor=False)
    for image in (below, alone):
        assert [region.kind for region in image.regions].count(PageType.VMSA) == 1
        last = image.regions[-1]
        assert (last.kind, Vmsa.from_buffer_copy(last.data).vmpl) == (PageType.VMSA, MONITOR_VMPL)
    (template,) = (region for region in below.regions if region.name == "kernel VMSA")
    assert template.kind == PageType.NORMAL
    kernel = Vmsa.from_buffer_copy(template.data)
    assert (kernel.vmpl, kernel.rip) == (KERNEL_VMPL, _KERNEL.entry)
    # Alone, it goes through code that validates what the launch did not.
    (stub,) = (region for region in alone.regions if region.name == "memory stub")
    assert Vmsa.from_buffer_copy(alone.regions[-1].data).rip == stub.gpa


def test_what_the_host_is_told_to_protect() -> None:
    assert _image(monitor=False).protected == ()
    (monitor,) = _image().protected
    assert (monitor.size, monitor.vmpl) == (MONITOR_SIZE, MONITOR_VMPL)
    monitor, services = _image(services=PROTECTED_SERVICES).protected
    assert monitor.gpa + monitor.size == services.gpa
    assert services.size == PROTECTED_SERVICES.region_size([])


@pytest.mark.parametrize(
    "changed",
    [
        {"owners": [bytes(32)]},
        {"readers": [bytes(32)]},
        {"services": PROTECTED_SERVICES},
        {"monitor": False},
        {"vcpus": 1},
        {"memory": _MEMORY * 2},
        {"line": "quiet "},
        {"initramfs": b"Initramfs"},
        {"cpuid": []},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_what_is_chosen_is_measured(changed: dict[str, Any]) -> None:
    assert _image(**changed).digest() != _image().digest()


def test_an_owner_is_not_a_reader() -> None:
    key = b"k" * 32
    assert _image(owners=[key]).digest() != _image(readers=[key]).digest()


def test_settings_of_services_are_measured() -> None:
    one, other = (protected_services(LogSettings(memory=size << 20)) for size in (1, 2))
    assert _image(services=one).digest() != _image(services=other).digest()


def test_cpuid_page() -> None:
    entries = [CpuidEntryValues(1, 0, 2, 3, 4, 5), CpuidEntryValues(0xD, 1, 8, 9, 10, 11, xcr0=7)]
    page = CpuidPage.from_buffer_copy(cpuid_page(entries))
    assert page.count == 2
    found = [
        (item.eax_in, item.ecx_in, item.eax, item.ebx, item.ecx, item.edx, item.xcr0_in) for item in page.functions[:2]
    ]
    assert found == [tuple(item) for item in entries]


def test_a_policy_of_its_own_is_checked() -> None:
    image = _image()
    image.require_acceptable(image.digest())
    dataclasses.replace(image, policy=DEFAULT_POLICY).require_acceptable(image.digest())
    with pytest.raises(LaunchError, match="bit 17 must be one"):
        dataclasses.replace(image, policy=0).require_acceptable(image.digest())
