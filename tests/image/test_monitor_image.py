# SPDX-License-Identifier: GPL-2.0-or-later
"""What of an image is VeilMon's: its parameters say where everything is, and are right."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.formats.launch_digest import PageType
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.roles import Role
from veil.host import LaunchRegion
from veil.image.monitor_image import (
    MONITOR_SIZE,
    KernelSide,
    kept_size,
    merge_ranges,
    monitor_regions,
    protected_ranges,
)
from veil.image.services_image import PROTECTED_SERVICES, ServicesImage
from veil.monitor import MonitorParameters, Option

BASE = 64 << 20
OWNER, READER = b"o" * 32, b"r" * 32
TABLE = b"cpuid".ljust(PAGE_SIZE, b"\0")


def _regions(services: ServicesImage | None, *, validates: bool = False) -> list[LaunchRegion]:
    kernel = KernelSide(
        template=bytes(PAGE_SIZE),
        ram=[(0, 256 << 20)],
        secrets=0x108000,
        cpuid=0x109000,
        caa=0x10A000,
        launched=[(0x1000, 0x2000), (0x100000, 0x3000)],
        validates=validates,
    )
    return monitor_regions(kernel, BASE, 2, TABLE, [OWNER], [READER], services)


def _parameters(regions: list[LaunchRegion]) -> MonitorParameters:
    """As VeilMon reads them, which refuses what cannot be."""
    (page,) = (region for region in regions if region.name == "parameters")
    return MonitorParameters.parse(page.data)


@pytest.mark.parametrize("services", [None, PROTECTED_SERVICES], ids=["alone", "with services"])
def test_parameters_say_where_everything_is(services: ServicesImage | None) -> None:
    regions = _regions(services)
    at = {region.gpa: region for region in regions}
    found = _parameters(regions)
    assert at[found.header_gpa].name == "VeilMon"
    assert at[found.secrets_gpa].kind == PageType.SECRETS
    assert at[found.cpuid_gpa].kind == PageType.CPUID
    assert at[found.template_gpa].name == "kernel VMSA"
    assert bytes(found.cpuid_digest) == hashlib.sha256(TABLE).digest()
    assert found.roles() == {OWNER: Role.OWNER, READER: Role.READER}
    if services is not None:
        program = [region for region in regions if found.service_code.contains(region.gpa, region.length)]
        assert program[0].gpa == found.service_code.gpa
        assert sum(region.length for region in program) == found.service_code.size


@pytest.mark.parametrize("services", [None, PROTECTED_SERVICES], ids=["alone", "with services"])
def test_launched_ranges_are_what_is_launched(services: ServicesImage | None) -> None:
    """What is missing VeilMon would zero; what is too much it would take from the host as validated."""
    regions = _regions(services)
    launched = {
        page for item in _parameters(regions).launched_ranges() for page in range(item.gpa, item.end, PAGE_SIZE)
    }
    own = {page for region in regions for page in range(region.gpa, region.gpa + region.length, PAGE_SIZE)}
    assert launched == own | {0x1000, 0x2000, 0x100000, 0x101000, 0x102000}


@pytest.mark.parametrize("services", [None, PROTECTED_SERVICES], ids=["alone", "with services"])
def test_regions_lie_in_what_is_kept_and_protected(services: ServicesImage | None) -> None:
    regions, ranges = _regions(services), protected_ranges(BASE, services)
    assert ranges[0].gpa == BASE
    assert sum(item.size for item in ranges) == kept_size(services)
    for region in regions:
        assert any(item.gpa <= region.gpa and region.gpa + region.length <= item.gpa + item.size for item in ranges)
    found = _parameters(regions)
    assert (found.monitor.gpa, found.monitor.size) == (BASE, MONITOR_SIZE)
    assert (found.services.size == 0) == (services is None)
    assert regions[-1].kind == PageType.VMSA, "it starts when all is there"


def test_firmware_validates_its_memory_itself() -> None:
    assert _parameters(_regions(None)).options == Option.NONE
    assert _parameters(_regions(None, validates=True)).options == Option.KERNEL_VALIDATES


@given(st.sets(st.integers(0, 40)))
def test_merged_ranges_are_the_same_pages_in_the_fewest_pieces(pages: set[int]) -> None:
    merged = merge_ranges([(page, 1) for page in pages])
    assert {page for start, length in merged for page in range(start, start + length)} == pages
    assert all(start - 1 not in pages and start + length not in pages for start, length in merged)
