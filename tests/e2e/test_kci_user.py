# SPDX-License-Identifier: GPL-2.0-or-later
"""What a remote user and the host's owner see of a kernel that its own init locked down, and of one that it did not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.e2e.log_guest import log_reader, trust_in
from tests.e2e.snapshots import LOCKED_KERNEL, OPEN_KERNEL, Resume
from veil import installation
from veil.cli.kci.commands import status_lines
from veil.cvm import ConfidentialVM
from veil.cvm.inspection import inspect_cvm
from veil.cvm.rmp_picture import write_picture
from veil.errors import VeilError
from veil.formats.enclave_settings import EncSettings
from veil.formats.kci_settings import OFF, ON, KciSettings
from veil.formats.kci_status import KciStatus
from veil.guest.errors import NoDriverError
from veil.image.services_image import protected_services
from veil.remote import ChannelClient
from veil.remote.channel.client import RequestFailed
from veil.remote.channel.identity import UserKey
from veil.remote.kci.status import read_status
from veil.remote.log.analysis import LogAnalysis
from veil.remote.log.findings import Finding, FindingKind

MODULE = "loop"


def _guest(resume: Resume, mode: str) -> ConfidentialVM:
    return resume(vcpus=2, services=LOCKED_KERNEL if mode == ON else OPEN_KERNEL)


def _status(vm: ConfidentialVM, identity: UserKey | None = None) -> KciStatus:
    with ChannelClient(vm.user_transport(timeout=60), identity=identity or installation.user_key()) as client:
        return read_status(client, trust_in(vm))


def _insmod(vm: ConfidentialVM, name: str, data: bytes, folder: Path) -> tuple[int, str]:
    (folder / f"{name}.ko").write_bytes(data)
    vm.copy_in(folder / f"{name}.ko", f"/root/{name}.ko")
    done = vm.run(["insmod", f"/root/{name}.ko"], timeout=60)
    return done.exit_status, done.stderr.decode()


def _findings(vm: ConfidentialVM) -> list[Finding]:
    reader = log_reader(vm, timeout=60)
    analysis, head = LogAnalysis(), reader.head()
    for entry in reader.fetch(head):
        analysis.feed(entry)
    analysis.finish(head)
    return [item for item in analysis.findings.items if item.kind == FindingKind.CODE_INTEGRITY]


def test_what_runs_and_what_was_refused(resume: Resume, tmp_path: Path) -> None:
    vm = _guest(resume, ON)
    intruder = vm.build_intruder()
    ((_, loop),) = vm.kernel_modules([MODULE])
    assert _insmod(vm, MODULE, loop, tmp_path) == (0, "")
    status, words = _insmod(vm, "intruder", intruder, tmp_path)
    assert status
    assert "not permitted" in words

    found = _status(vm)
    assert found.locked_ns is not None
    assert found.refused >= 1
    (module,) = [item for item in found.modules if item.name == MODULE]
    assert (module.sha256, module.live) == (hashlib.sha256(loop).hexdigest(), True)
    assert "intruder" not in {item.name for item in found.modules}
    digest = hashlib.sha256(intruder).hexdigest()
    assert any(digest in line for line in status_lines(found))
    with pytest.raises(RequestFailed):
        _status(vm, UserKey.generate())

    notes = [item for item in _findings(vm) if not item.trouble]
    trouble = [item for item in _findings(vm) if item.trouble]
    assert "locked down" in notes[0].words
    assert len(trouble) == found.refused
    assert all(digest in item.words and item.entry > notes[0].entry for item in trouble)


def test_the_same_without_code_integrity(resume: Resume, tmp_path: Path) -> None:
    vm = _guest(resume, OFF)
    assert _insmod(vm, "intruder", vm.build_intruder(), tmp_path) == (0, "")
    found = _status(vm)
    assert (found.mode, found.locked_ns, found.modules) == (OFF, None, ())
    assert _findings(vm) == []


def test_inspection_before_and_after(resume: Resume, tmp_path: Path) -> None:
    from PIL import Image

    before, after = (_guest(resume, mode) for mode in (OFF, ON))
    seen = inspect_cvm(before)
    assert seen.supervisor_code.pages == seen.supervisor_code.writable > 100_000
    seen, status = inspect_cvm(after), _status(after)
    assert seen.supervisor_code.locked
    assert seen.supervisor_code.pages == status.text_pages + sum(item.text for item in status.modules) // 4096
    assert not any(item.execute_supervisor and item.write for item in seen.kernel_rights)
    # The kernel's text is whole, and where it was linked.
    text = (16 << 20, status.text_pages * 4096)
    assert text in seen.supervisor_code.ranges
    colours = []
    for vm, name in ((before, "before.png"), (after, "after.png")):
        write_picture(vm, tmp_path / name)
        with Image.open(tmp_path / name) as opened:
            colours.append(opened.convert("RGB").getpixel((110, 96 + 2 * 8)))
    assert colours == [(70, 160, 90), (225, 120, 30)]


def test_a_kernel_that_gets_no_driver_is_not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would ask for lock-down, and the user would think that it is there."""

    def none(*_: object) -> bytes:
        raise NoDriverError("no package linux-headers-7.1 in trixie")

    monkeypatch.setattr("veil.cvm.assembly.build_driver", none)
    for mode, deaf in ((ON, "VeilS-LOG, VeilS-KCI"), (OFF, "VeilS-LOG")):
        services = protected_services(KciSettings(mode=mode))
        with pytest.raises(
            VeilError, match=rf"^no package linux-headers-7\.1 in trixie\. .*: {deaf}\. .*--without-driver$"
        ):
            ConfidentialVM(services=services, fresh=True).build_image()
    said = list[str]()
    ConfidentialVM(services=services, driver=False, fresh=True, progress=said.append).build_image()
    assert "no driver: services that hear nothing of the kernel: VeilS-LOG" in said
    for asked, message in (
        ((KciSettings(mode=ON),), "nobody asks for lock-down"),
        ((KciSettings(mode=OFF), EncSettings(mode=ON)), "no process makes"),
    ):
        with pytest.raises(VeilError, match=message):
            ConfidentialVM(services=protected_services(*asked), driver=False, fresh=True).build_image()
