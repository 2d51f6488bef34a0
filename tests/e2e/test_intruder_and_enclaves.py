# SPDX-License-Identifier: GPL-2.0-or-later
"""The demonstration's intruder, a module in the stock kernel, against a running enclave that has a secret."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.e2e.snapshots import Resume
from tests.e2e.test_enclave_secrets import KEY, build, launch_log, said, send, service_of, start
from veil.cli.own_cvm import own_client
from veil.cvm import ConfidentialVM
from veil.formats.enclave_settings import ON, EncSettings
from veil.formats.kci_settings import OFF, KciSettings
from veil.guest.enclaves.image import EnclaveImage
from veil.host import NestedPageFault
from veil.image.services_image import protected_services
from veil.remote.enc.enclaves import open_enclaves
from veil.services.enc.enclave import Enclave
from veil.snp import Permission

pytestmark = pytest.mark.usefixtures("idle_time_passes")

PAGE = 4096
SECRET, PLAIN = b"the owner has sent this to one", b"somebody has typed this for all"
PARAMETERS = "/sys/module/intruder/parameters"
OPEN_WITH_ENCLAVES = protected_services(KciSettings(mode=OFF), EncSettings(mode=ON))


@pytest.fixture(scope="module")
def busybox() -> EnclaveImage:
    return build()


@pytest.fixture
def vm(resume: Resume, tmp_path: Path, busybox: EnclaveImage) -> ConfidentialVM:
    """A shell in an enclave has the one secret in a variable, an ordinary shell the other."""
    vm = resume(services=OPEN_WITH_ENCLAVES)
    (tmp_path / "intruder.ko").write_bytes(vm.build_intruder())
    vm.copy_in(tmp_path / "intruder.ko", "/root/intruder.ko")
    assert vm.run(["insmod", "/root/intruder.ko"]).exit_status == 0
    start(vm, tmp_path, busybox, "out", "sh", "-c", f"'read -r key <{KEY}; echo has it; read -r more'")
    send(vm, busybox, SECRET + b"\n")
    assert said(vm, "out") == "has it\n"
    script = (
        "mkfifo /tmp/in; setsid sh -c 'read -r key; echo has it; read -r more' </tmp/in >/tmp/plain 2>&1 & cat >/tmp/in"
    )
    assert vm.run(["sh", "-c", f"{script}; sleep 1"], stdin=PLAIN + b"\n").exit_status == 0
    return vm


def search(vm: ConfidentialVM, secret: bytes) -> tuple[int, int, int]:
    """Times found, pages searched, pages of enclaves."""
    done = vm.run(["sh", "-c", f"echo {secret.hex()} >{PARAMETERS}/search && cat {PARAMETERS}/search"], timeout=120)
    found = re.fullmatch(rb"found (\d+) times in (\d+) pages; (\d+) pages are enclaves'\n", done.stdout)
    assert found, done
    return int(found[1]), int(found[2]), int(found[3])


def enclave_of(vm: ConfidentialVM) -> Enclave:
    (enclave,) = service_of(vm)._enclaves.values()
    return enclave


def touch(vm: ConfidentialVM, what: str) -> None:
    assert vm.run(["sh", "-c", f"echo {what} 1 >{PARAMETERS}/touch"]).exit_status == 0


def test_all_memory_of_the_kernels_is_searched(vm: ConfidentialVM) -> None:
    """But for the enclave's pages, and there the secret is. What an ordinary program has is found."""
    enclave, view = enclave_of(vm), vm.machine.view(vmpl=2)
    found, searched, skipped = search(vm, SECRET)
    assert found == 0
    assert skipped == len(enclave.owned)
    assert (searched + skipped) * PAGE > vm.memory * 0.5
    assert any(SECRET in view.read(page, PAGE) for page in enclave.owned if page not in enclave.contexts)
    assert search(vm, PLAIN)[0] > 0


@pytest.mark.parametrize("what", ["read", "write"])
def test_touching_it_is_the_end_of_that_kernel(vm: ConfidentialVM, busybox: EnclaveImage, what: str) -> None:
    enclave, view = enclave_of(vm), vm.machine.view(vmpl=2)
    pages = [page for page in enclave.owned if page not in enclave.contexts]
    with pytest.raises(NestedPageFault, match="VMPL 3 has no permission") as stopped:
        touch(vm, what)
    assert (stopped.value.gpa & -PAGE in pages, stopped.value.vmpl) == (True, 3)
    assert bool(stopped.value.info & 1 << 1) == (what == "write")
    assert view.read_u64(stopped.value.gpa) != 0x666
    assert any(SECRET in view.read(page, PAGE) for page in pages)
    # Users still have their answers, and nothing runs that could be asked for the secret.
    vm.hypervisor.kernel_end.is_outlived = True
    with own_client(vm, launch_log(vm)) as (client, trust):
        (left,) = open_enclaves(client, trust).all()
    assert left.measurement == busybox.measurement.hex()


def test_without_the_protection_it_would_get_through(vm: ConfidentialVM) -> None:
    enclave, view = enclave_of(vm), vm.machine.view(vmpl=2)
    for page in enclave.owned:
        if page not in enclave.contexts:
            vm.machine.host_view().psmash(page & -(2 << 20))
            vm.machine.view(vmpl=0).rmpadjust(page, vmpl=3, permissions=Permission.ALL)
    touch(vm, "read")
    (line,) = re.findall(r"an enclave's page at (0x\w+): (0x\w+)", vm.run(["dmesg"]).stdout.decode())
    page, value = (int(part, 16) for part in line)
    assert page in enclave.owned
    assert value == view.read_u64(page)
    touch(vm, "write")
    assert view.read_u64(page) == 0x666
