# SPDX-License-Identifier: GPL-2.0-or-later
"""What `veil measure` says an image is made from: all that is in it, and nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.guest.ovmf.test_efi_program import efi_header
from veil.cvm import ConfidentialVM


def _file(folder: Path, name: str, data: bytes) -> tuple[Path, str]:
    path = folder / name
    path.write_bytes(data)
    return path, hashlib.sha256(data).hexdigest()


def test_with_firmware_and_an_initrd_of_the_users_nothing_of_veils_is_in_it(tmp_path: Path) -> None:
    """Such a guest has no agent, so no compiler of this computer's matters either."""
    (program, its), (initrd, initrds), (firmware, firmwares) = (
        _file(tmp_path, "program.efi", efi_header()),
        _file(tmp_path, "initrd", b"words"),
        _file(tmp_path, "firmware.fd", b"code"),
    )
    vm = ConfidentialVM(kernel=program, initrd=initrd, firmware=firmware, monitor=False)
    assert vm.ingredients() == {
        f"kernel file {program}": its,
        f"initrd {initrd}": initrds,
        f"firmware {firmware}": firmwares,
    }
    assert vm.compilers() == {}


def test_a_guest_that_boots_from_a_disk_is_its_firmware(tmp_path: Path) -> None:
    firmware, digest = _file(tmp_path, "firmware.fd", b"code")
    vm = ConfidentialVM(kernel="none", firmware=firmware, monitor=False)
    assert vm.ingredients() == {f"firmware {firmware}": digest}
    assert vm.compilers() == {}
