# SPDX-License-Identifier: GPL-2.0-or-later
"""IGVM files: whatever stands in one, it is refused in one line, or what it makes fits the guest."""

from __future__ import annotations

import contextlib
import itertools
import struct
import zlib
from collections.abc import Iterable

from fuzz.target import Target
from tests.igvm_writer import PAGE, IgvmWriter, vmsa
from veil.formats.launch_digest import PageType
from veil.guest.errors import GuestImageError
from veil.guest.igvm.file import parse_igvm
from veil.host import LaunchRegion, SharedPages
from veil.image.igvm_image import build_igvm_image, igvm_memory, least_privileged_level
from veil.snp import ram_ranges
from veil.snp.cpuid import CpuidEntryValues

__all__ = ["TARGETS"]

_MEMORY, _VCPUS = 16 << 20, 2
_CPUID = [CpuidEntryValues(0, 0, 7, 1, 2, 3)]
#: The data of every input: so inputs are headers alone, and short.
_DATA = vmsa(0) * 8


def _mended(data: bytes) -> bytes:
    """With the right size and checksum: no fuzzer guesses these."""
    data += _DATA
    offset, size = struct.unpack_from("<II", data, 8) if len(data) >= 16 else (0, 0)
    length = 32 if data[4:8] == b"\2\0\0\0" else 24
    fixed = data[:16] + struct.pack("<II", len(data), 0) + data[24:length]
    checksum = zlib.crc32(data[offset : offset + size], zlib.crc32(fixed))
    return fixed[:20] + struct.pack("<I", checksum) + data[24:]


def _run(data: bytes) -> None:
    with contextlib.suppress(GuestImageError):
        parse_igvm(data, "as it is")
    file = parse_igvm(_mended(data), "mended")
    least_privileged_level(file)
    ram = ram_ranges(_MEMORY, igvm_memory(file))
    image = build_igvm_image(file, ram=ram, vcpus=_VCPUS, cpuid=_CPUID)
    loaded: list[LaunchRegion | SharedPages] = [*image.regions, *image.shared]
    places = sorted((item.gpa, item.gpa + item.length) for item in loaded)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(places)), "two regions share a page"
    for start, end in places:
        assert any(at <= start < end <= at + size for at, size in ram), "a region is not in memory"
    contexts = [(region.vcpu, region.vmpl) for region in image.regions if region.kind == PageType.VMSA]
    assert len(set(contexts)) == len(contexts), "a level has two contexts"
    assert all(vcpu < _VCPUS and vmpl < 4 for vcpu, vmpl in contexts)
    assert all(len(region.data) <= region.length for region in image.regions)


def _seeds() -> Iterable[bytes]:
    first = IgvmWriter().platform().page(0x1000, bytes(PAGE)).context(0x2000, vmsa(0))
    second = (
        IgvmWriter(version=2)
        .platform(mask=2, kind=3)
        .platform()
        .policy(0x30000)
        .required(0, 1 << 20)
        .page(0x1000, bytes(PAGE))
        .page(0x200000, flags=1)
        .page(0x3000, flags=4)
        .page(0x4000, kind=1)
        .page(0x5000, kind=2)
        .page(0x6000, flags=2)
        .area(1, PAGE, bytes(PAGE))
        .area(2, 2 * PAGE)
        .parameter(0x307, 1)
        .parameter(0x30C, 2, 8)
        .parameter(0x30E, 2, PAGE)
        .parameter(0x309, 2, 0x1800)
        .insert(0x8000, 1)
        .insert(0x9000, 2)
        .error_range(0xB000, PAGE)
        .raw(0x80000399, b"something")
        .raw(0x30B, struct.pack("<I692x", 1))
        .context(0xFFFFFFFFF000, vmsa(0))
        .context(0xFFFFF000, vmsa(0), vp=1)
    )
    for writer in (first, second):
        data = writer.write()
        start, size = struct.unpack_from("<II", data, 8)
        yield data[: start + size]


TARGETS = (
    Target(
        "igvm",
        _run,
        _seeds,
        words=tuple(struct.pack("<I", kind) for kind in (*range(0x101, 0x107), *range(0x301, 0x314), 1 << 31)),
    ),
)
