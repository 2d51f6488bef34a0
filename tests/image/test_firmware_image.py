# SPDX-License-Identifier: GPL-2.0-or-later
"""The image of a guest with stock firmware has the digest that sev-snp-measure computes from the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sevsnpmeasure.guest import snp_calc_launch_digest
from sevsnpmeasure.vmm_types import VMMType

from tests.guest.ovmf.made_firmware import PAGE, SECTIONS, write_firmware
from veil.formats.launch_digest import PageType
from veil.guest.errors import GuestImageError
from veil.guest.ovmf.metadata import parse_firmware
from veil.host import DEFAULT_POLICY
from veil.host.launch import load_image
from veil.image.firmware_image import BootFiles, build_firmware_image, firmware_memory
from veil.image.launch_image import LaunchImage
from veil.snp import CpuFeature, Machine, ram_ranges
from veil.snp.cpuid import PROCESSOR_SIGNATURE, CpuidEntryValues, launch_features

_MEMORY = 16 << 20
_CPUID = [CpuidEntryValues(0, 0, 7, 1, 2, 3)]
_FILES = BootFiles(b"kernel" * 1000, b"initrd" * 1000, "console=ttyS0 quiet")


def _image(
    data: bytes, files: BootFiles | None = None, vcpus: int = 1, memory: int = _MEMORY, features: int = 1
) -> LaunchImage:
    firmware = parse_firmware(data, "OVMF.fd")
    ram = ram_ranges(memory, firmware_memory(firmware, vcpus))
    return build_firmware_image(firmware, files, ram=ram, vcpus=vcpus, cpuid=_CPUID, sev_features=features)


def _expected(folder: Path, data: bytes, files: BootFiles | None, vcpus: int, features: int = 1) -> bytes:
    names = {"firmware": data, "kernel": files.kernel if files else b"", "initrd": files.initrd if files else b""}
    for name, content in names.items():
        (folder / name).write_bytes(content)
    kernel, initrd = (str(folder / name) if files and names[name] else None for name in ("kernel", "initrd"))
    digest: Any = snp_calc_launch_digest(
        vcpus, PROCESSOR_SIGNATURE, str(folder / "firmware"), kernel, initrd,
        files.command_line if files else None, features, "", VMMType.QEMU,
    )  # fmt: skip
    assert isinstance(digest, bytes)
    return digest


def test_digest_with_debug_swap(tmp_path: Path) -> None:
    """SEV_FEATURES of the VMSAs are measured."""
    data, features = write_firmware(), launch_features([CpuFeature.DEBUG_SWAP])
    digest = _image(data, _FILES, 2, features=features).digest()
    assert digest == _expected(tmp_path, data, _FILES, 2, features)
    assert digest != _image(data, _FILES, 2).digest()


@pytest.mark.parametrize("vcpus", [1, 2, 4])
@pytest.mark.parametrize("files", [None, _FILES, BootFiles(b"kernel", b"", "")])
def test_digest(tmp_path: Path, files: BootFiles | None, vcpus: int) -> None:
    data = write_firmware()
    assert _image(data, files, vcpus).digest() == _expected(tmp_path, data, files, vcpus)


def test_the_machine_reports_it(tmp_path: Path) -> None:
    data = write_firmware()
    image = _image(data, _FILES, 2)
    firmware = parse_firmware(data, "OVMF.fd")
    with Machine(_MEMORY, firmware_size=firmware_memory(firmware, 2)) as machine:
        load_image(
            machine.host_view(), machine.secure_processor, machine.ram_ranges, image.regions,
            vcpus=2, policy=DEFAULT_POLICY, host_data=bytes(32),
        )  # fmt: skip
        assert machine.secure_processor.measurement == _expected(tmp_path, data, _FILES, 2)
        # Where the reset vector is: the file's last 16 bytes.
        assert machine.view(vmpl=0).read((1 << 32) - 16, 16) == data[-16:]


def test_where_vmsas_are() -> None:
    """Before the file, a page each, of which the memory map says nothing."""
    image = _image(write_firmware(), vcpus=2)
    vmsas = [region for region in image.regions if region.kind == PageType.VMSA]
    assert [(region.gpa, region.vcpu, region.vmpl) for region in vmsas] == [(0xFFFFC000, 0, 0), (0xFFFFD000, 1, 0)]


def test_refused() -> None:
    with pytest.raises(GuestImageError, match="does not check the kernel"):
        _image(write_firmware(SECTIONS[:-1], hashes_at=0), _FILES)
    with pytest.raises(GuestImageError, match="give it one VCPU"):
        _image(write_firmware(reset=None), vcpus=2)
    with pytest.raises(GuestImageError, match=f"{PAGE * 2:#x} bytes of memory at 0x800000: give the guest more memory"):
        _image(write_firmware(), memory=4 << 20)
