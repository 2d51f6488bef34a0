# SPDX-License-Identifier: GPL-2.0-or-later
"""A secret gets to the enclave of one measurement; nobody else answers for the service, or brings an old one back."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.snapshots import Resume, RunSnapshots, keep_copy
from tests.e2e.test_enclaves import ENCLAVES
from veil.cache import Cache
from veil.cli import main
from veil.cli.cvm_options import CvmOptions
from veil.cli.own_cvm import own_client
from veil.cvm import ConfidentialVM
from veil.cvm.enclaves import enclave_command, image_place
from veil.formats.enclave_pages import MAILBOX_DATA, Mailbox
from veil.formats.launch_digest import LaunchLog
from veil.formats.status import Status
from veil.guest.enclaves.build import build_enclave
from veil.guest.enclaves.image import EnclaveImage
from veil.guest.enclaves.manifest import Manifest
from veil.guest.enclaves.trusted_files import DebianFiles
from veil.remote.enc.enclaves import open_enclaves
from veil.services.enc import mailbox
from veil.services.enc.service import EncService
from veil.services.program import ServiceDomain
from veil.snp import Permission, RmpViolation

PAGE = 4096
KEY, SENT = "/run/secrets/key", b"a key\n"


def build(**more: object) -> EnclaveImage:
    """Debian's busybox, which asks for the secret `key`."""
    values = {"memory": "4M", "threads": 1, "arguments": {"outside": True}, "files": {"secrets": ["key"]}, **more}
    return build_enclave(Cache(), DebianFiles(Cache(), ["busybox-static"]), "busybox", Manifest.of(values))


@pytest.fixture(scope="module")
def busybox() -> EnclaveImage:
    return build()


@pytest.fixture
def vm(resume: Resume) -> ConfidentialVM:
    return resume(services=ENCLAVES)


def service_of(vm: ConfidentialVM) -> EncService:
    services = vm.machine.hosted_program(vm.hypervisor.vcpus[0].contexts[1].vmcb.vmsa_pa)
    assert isinstance(services, ServiceDomain)
    (found,) = (service for service in services.services if isinstance(service, EncService))
    return found


_LOGS: dict[str, LaunchLog] = {}


def launch_log(vm: ConfidentialVM) -> LaunchLog:
    """What the CVM must be; computed once."""
    key = vm.configuration.key()
    if key not in _LOGS:
        _LOGS[key] = vm.build_image().log()
    return _LOGS[key]


def send(vm: ConfidentialVM, image: EnclaveImage, secret: bytes) -> None:
    with own_client(vm, launch_log(vm)) as (client, trust):
        open_enclaves(client, trust).provision(image.measurement, b"key", secret)


def start(vm: ConfidentialVM, folder: Path, image: EnclaveImage, name: str, *arguments: str) -> None:
    """In the background; what it prints is in /tmp/`name`, its status in `name`.end, what it may read never comes."""
    place = folder / f"{name}.enclave"
    place.write_bytes(image.pack())
    vm.copy_in(place, image_place(place))
    command = " ".join(enclave_command(place, arguments))
    pipe = f"mkfifo /tmp/{name}.in; setsid sleep 1000 >/tmp/{name}.in 2>/dev/null &"
    script = f"{pipe} ({command} </tmp/{name}.in >/tmp/{name} 2>&1; echo $? >/tmp/{name}.end) >/dev/null 2>&1 &"
    assert vm.run(["setsid", "sh", "-c", script]).exit_status == 0


def said(vm: ConfidentialVM, name: str, seconds: int = 30) -> str:
    """What it printed, as soon as there is something."""
    script = f"for i in $(seq {seconds * 10}); do [ -s /tmp/{name} ] && break; sleep 0.1; done; cat /tmp/{name}"
    return vm.run(["sh", "-c", script]).stdout.decode()


def test_one_line(
    snapshots: RunSnapshots,
    busybox: EnclaveImage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    guest = CvmOptions("512M", 1, None, False, settings={"enclaves": True}).configuration()
    keep_copy(snapshots.of(guest), guest)
    (tmp_path / "busybox.enclave").write_bytes(busybox.pack())
    (tmp_path / "key.pem").write_bytes(SENT)
    options = ["--enclave", f"{tmp_path}/busybox.enclave", "--secret", f"key={tmp_path}/key.pem"]
    monkeypatch.setattr("sys.argv", ["veil", "run", *options, "--", "sha256sum", KEY])
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capfd.readouterr()
    assert (caught.value.code, out) == (0, f"{hashlib.sha256(SENT).hexdigest()}  {KEY}\n"), err


def test_attested_and_provisioned_from_elsewhere(vm: ConfidentialVM, tmp_path: Path, busybox: EnclaveImage) -> None:
    """By the commands, over TCP: an enclave that waits in a guest that was started without the user."""
    start(vm, tmp_path, busybox, "out", "cat", KEY)
    assert said(vm, "out", 2) == ""
    (tmp_path / "launch.log").write_bytes(launch_log(vm).pack())
    (tmp_path / "key.pem").write_bytes(SENT)
    listener = vm.listen()

    def veil(*words: str) -> tuple[int, str]:
        where = ("--connect", "{}:{}".format(*listener.address), "--software", "--launch-log", "launch.log")
        code = "from veil.cli import main; main()"
        command = [sys.executable, "-c", code, "enclave", *words, *where]
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as running:
            while running.poll() is None:
                vm.wait(0.05)
            assert running.stdout is not None
            return running.returncode, running.stdout.read()

    try:
        status, said_of_it = veil("attest", "out.enclave")
        assert status == 0
        assert said_of_it.startswith(f"enclave 1: {busybox.measurement.hex()}, 1 thread at most, ")
        expected = f"key: {len(SENT)} bytes for enclaves of {busybox.measurement.hex()}\n"
        assert veil("provision", "out.enclave", "key", "key.pem") == (0, expected)
    finally:
        listener.close()
    assert said(vm, "out").encode() == SENT


@pytest.mark.usefixtures("idle_time_passes")
def test_it_is_waited_for_and_no_other_enclave_gets_it(
    vm: ConfidentialVM, tmp_path: Path, busybox: EnclaveImage
) -> None:
    """The other differs in one number of its manifest, asks for the same name, and gets what is its own."""
    other = build(memory="5M")
    start(vm, tmp_path, busybox, "first", "cat", KEY)
    start(vm, tmp_path, other, "other", "cat", KEY)
    assert said(vm, "first", 2) == said(vm, "other", 0) == ""
    send(vm, busybox, b"for the first")
    assert said(vm, "first") == "for the first"
    start(vm, tmp_path, other, "later", "cat", KEY)
    assert said(vm, "later", 3) == said(vm, "other", 0) == ""
    send(vm, other, b"for the other")
    assert said(vm, "other") == said(vm, "later") == "for the other"


def test_root_has_no_such_file(vm: ConfidentialVM, tmp_path: Path, busybox: EnclaveImage) -> None:
    """Nor does one that root puts there get in."""
    send(vm, busybox, b"the owner's")
    vm.run(["sh", "-c", f"mkdir -p /run/secrets; echo forged >{KEY}"])
    place = tmp_path / "busybox.enclave"
    place.write_bytes(busybox.pack())
    assert vm.run_enclave(place, ["cat", KEY]).stdout == b"the owner's"
    assert vm.run(["cat", KEY]).stdout == b"forged\n"


def test_the_newest_counts(vm: ConfidentialVM, tmp_path: Path, busybox: EnclaveImage) -> None:
    script = f"read -r a <{KEY}; echo $a; read -r go; read -r b <{KEY}; echo $b"
    send(vm, busybox, b"old\n")
    start(vm, tmp_path, busybox, "out", "sh", "-c", f"'{script}'")
    assert said(vm, "out") == "old\n"
    send(vm, busybox, b"new\n")
    vm.run(["sh", "-c", "echo >/tmp/out.in; until grep -q new /tmp/out; do sleep 0.1; done"], timeout=60)
    assert said(vm, "out") == "old\nnew\n"


@pytest.fixture
def unserved(vm: ConfidentialVM, tmp_path: Path, busybox: EnclaveImage, monkeypatch: pytest.MonkeyPatch) -> int:
    """The page of the mailbox in which an enclave waits for an answer: the kernel says that it had it served, and did
    not."""
    service = service_of(vm)
    send(vm, busybox, b"the owner's")
    asked: list[int] = []
    honest = mailbox.serve

    def serve(context: object, keys: object, ledger: object, enclave: object, slot: int) -> int | None:
        found = service._enclaves[1].mailboxes[slot]
        view = vm.machine.view(vmpl=2)
        if view.read(found + MAILBOX_DATA, 3) == b"key" and view.read_u32(found) == 5:
            asked.append(found)
            return None
        return honest(context, keys, ledger, enclave, slot)  # type: ignore[arg-type]

    monkeypatch.setattr(mailbox, "serve", serve)
    start(vm, tmp_path, busybox, "out", "cat", KEY)
    assert said(vm, "out", 2) == ""
    assert len(asked) > 1, "the enclave asks again"
    assert service._enclaves[1].state.value == "ready"
    return asked[0]


FORGED = b"forged by the kernel"


def answer(vm: ConfidentialVM, gpa: int, vmpl: int) -> None:
    """What the service would write."""
    view = vm.machine.view(vmpl=vmpl)
    view.write(gpa + MAILBOX_DATA, FORGED)
    view.write(gpa + Mailbox.result.offset, len(FORGED).to_bytes(8, "little"))
    view.write(gpa + Mailbox.status.offset, int(Status.OK).to_bytes(4, "little"))


@pytest.mark.usefixtures("idle_time_passes")
def test_nobody_answers_for_the_service(vm: ConfidentialVM, unserved: int) -> None:
    """The kernel's stores are refused by the RMP. The counter-test: with it open, the enclave believes them."""
    with pytest.raises(RmpViolation):
        answer(vm, unserved, vmpl=3)
    assert said(vm, "out", 1) == ""
    vm.machine.host_view().psmash(unserved & -(2 << 20))
    vm.machine.view(vmpl=0).rmpadjust(unserved, vmpl=3, permissions=Permission.RW)
    answer(vm, unserved, vmpl=3)
    assert said(vm, "out") == FORGED.decode()


@pytest.mark.usefixtures("idle_time_passes")
def test_a_host_that_brings_an_old_answer_back(vm: ConfidentialVM, unserved: int) -> None:
    """It has the page as it was with another answer in it, as ciphertext. To write that, it must take the page; then it
    is not validated any more, and the enclave ends where it looks at it."""
    host, veilmon = vm.machine.host_view(), vm.machine.view(vmpl=0)
    before = veilmon.read(unserved, PAGE)
    answer(vm, unserved, vmpl=0)
    old = host.read(unserved, PAGE)
    veilmon.write(unserved, before)
    with pytest.raises(RmpViolation):
        host.write(unserved, old)
    host.psmash(unserved & -(2 << 20))
    host.rmpupdate(unserved, assigned=False)
    host.write(unserved, old)
    host.rmpupdate(unserved, assigned=True)
    assert said(vm, "out.end") == "125\n"
    assert FORGED.decode() not in said(vm, "out", 0)
    # The counter-test: that answer would have been believed, were the page valid.
    veilmon.pvalidate(unserved, validate=True)
    assert veilmon.read(unserved + MAILBOX_DATA, len(FORGED)) == FORGED
