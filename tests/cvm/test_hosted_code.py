# SPDX-License-Identifier: GPL-2.0-or-later
"""What neither a guest nor a snapshot's maker can have run on the user's computer."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.guest.linux.images import elf
from tests.guest.ovmf.made_firmware import write_firmware
from veil.cache import Cache
from veil.cli.cvm_options import CvmOptions
from veil.cvm import ConfidentialVM, Configuration
from veil.cvm.kept_snapshots import write_cvm
from veil.errors import VeilError
from veil.formats.page_sizes import PAGE_SIZE, PAGE_SIZE_2M
from veil.guest.driver.compilers import COMPILER_AT_HAND
from veil.snp import LaunchError, Machine, RmpResult
from veil.snp.hosted import hosted_header
from veil.snp.layouts import Vmcb, Vmsa

#: where the guest of a few pages has nothing
_FREE = 4 << 20
_HEADER, _VMSA, _ARCHIVE = _FREE, _FREE + PAGE_SIZE, _FREE + 2 * PAGE_SIZE


def _write_hosted_code(machine: Machine) -> Vmcb:
    """All that a kernel at VMPL 0 can do: validate pages, write there, make one a VMSA, have the host run it."""
    buffer = io.BytesIO()
    source = b"raise RuntimeError('a stranger was here')"
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("stranger.py")
        info.size = len(source)
        tar.addfile(info, io.BytesIO(source))
    archive = buffer.getvalue()
    assert machine.host_view().psmash(_FREE) == RmpResult.SUCCESS
    kernel = machine.view(vmpl=0)
    for gpa in range(_FREE, _FREE + PAGE_SIZE_2M, PAGE_SIZE):
        assert kernel.pvalidate(gpa).code == RmpResult.SUCCESS
    kernel.write(_HEADER, hosted_header("stranger:Program", archive=(_ARCHIVE, len(archive)), parameters=(_HEADER, 8)))
    kernel.write(_ARCHIVE, archive)
    kernel.write(_VMSA, bytes(Vmsa(vmpl=0, sev_features=1, rip=_HEADER, efer=1 << 12)))
    assert kernel.rmpadjust(_VMSA, vmpl=1, permissions=0, vmsa=True) == RmpResult.SUCCESS
    vmcb = machine.new_vmcb()
    vmcb.vmsa_pa = _VMSA
    return vmcb


@pytest.fixture
def chosen(tmp_path: Path) -> Configuration:
    """What --no-monitor makes, with a firmware of a few bytes."""
    firmware = tmp_path / "OVMF.fd"
    firmware.write_bytes(write_firmware())
    return CvmOptions("16M", 1, "none", no_monitor=True, firmware=str(firmware)).configuration()


def test_a_kernel_without_a_monitor_has_no_python_run(chosen: Configuration, tmp_path: Path) -> None:
    """It is at VMPL 0, where VeilMon is Python."""
    with closing(ConfidentialVM(chosen)) as vm:
        vm.launch()
        vmcb = _write_hosted_code(vm.machine)
        vm.machine.vmrun(vmcb)
        assert vm.machine.hosted_program(_VMSA) is None
        vm.snapshot(tmp_path / "snapshot")
    with closing(ConfidentialVM.restore(tmp_path / "snapshot")) as vm:
        vm.machine._machine_code.clear()
        vm.machine.vmrun(vmcb)
        assert vm.machine.hosted_program(_VMSA) is None
    # On a machine that takes its memory for an image of Veil's, it runs.
    with closing(ConfidentialVM(chosen)) as vm:
        vm.launch()
        vm.machine.runs_hosted = True
        with pytest.raises(LaunchError, match="a stranger was here"):
            vm.machine.vmrun(_write_hosted_code(vm.machine))


_RELEASE = "6.12.1-amd64"
_MAKERS: dict[str, Callable[[ConfidentialVM], object]] = {
    "image": ConfidentialVM.build_image,
    "ingredients": ConfidentialVM.ingredients,
    "intruder": ConfidentialVM.build_intruder,
    "modules": lambda vm: vm.kernel_modules(["loop"]),
    "launch": ConfidentialVM.launch,
}


def test_a_snapshot_chooses_no_kernel_on_its_users_computer(
    chosen: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a kernel lie the Makefiles of its headers: whoever has modules built for it runs them."""
    theirs, mark = tmp_path / "theirs", tmp_path / "mark"
    headers = theirs / f"usr/src/linux-headers-{_RELEASE}"
    headers.mkdir(parents=True)
    (headers / "Makefile").write_text(f"$(shell touch {mark})\nmodules:\n")
    version = subprocess.run(
        [COMPILER_AT_HAND, "-dumpversion"], capture_output=True, check=True, text=True
    ).stdout.strip()
    banner = f"Linux version {_RELEASE} (a@b) (gcc (Debian) {version}.0.0) #1\n\0".encode()
    (theirs / "vmlinux").write_bytes(elf([(0x1000000, banner, 4096)], entry=0x1000000))
    claimed = replace(chosen, kernel=str(theirs / "vmlinux"))
    with closing(ConfidentialVM(chosen)) as vm:
        vm.launch()
        write_cvm(tmp_path / "snapshot", vm.machine, vm.hypervisor, claimed)
    monkeypatch.setattr(ConfidentialVM, "connect", lambda self: None)
    with closing(ConfidentialVM.restore(tmp_path / "snapshot")) as vm:
        for make in _MAKERS.values():
            with pytest.raises(VeilError, match="names files of its maker's computer") as caught:
                make(vm)
            assert str(theirs / "vmlinux") in str(caught.value)
            assert "\n" not in str(caught.value)
        assert not mark.exists()
        # Whoever knows them for his own can say so.
        with pytest.raises(VeilError, match="cannot build the driver"):
            ConfidentialVM(vm.configuration, cache=Cache(tmp_path / "cache")).build_intruder()
    assert mark.exists()
