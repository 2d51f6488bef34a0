# SPDX-License-Identifier: GPL-2.0-or-later
"""A booted kernel's own pages, named by reference with the driver's calls: a service reads them, and nothing else."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.c_declarations import Declarations
from tests.e2e import page_reader
from veil.cache import Cache
from veil.cvm import ConfidentialVM
from veil.formats.ghcb import MsrRequest, run_vmpl_request
from veil.formats.status import Status
from veil.guest.driver.build import build_module, driver_sources
from veil.guest.linux.kernel import DEFAULT_SERIES, debian_kernel
from veil.host import Hypervisor
from veil.host.ghcb import msr_protocol
from veil.host.vcpu import Context, Vcpu
from veil.image.services_image import ServicesImage

PAGE = 4096
_DRIVER = driver_sources()
_DECLARED = Declarations.of(data.decode() for data in _DRIVER.values())
MAX_PAGES = _DECLARED.numbers["VEIL_MAX_PAGES"]
NO_ANSWER = _DECLARED.numbers["VEIL_NO_ANSWER"]
EFAULT, EINVAL, E2BIG = 14, 22, 7
NOTHING = bytes(32)


class Pager:
    """A guest whose only service reads pages."""

    def __init__(self, vm: ConfidentialVM) -> None:
        self.vm = vm
        # Its blocks are about to be the test's.
        self.sh("rmmod veil")

    def sh(self, command: str) -> str:
        done = self.vm.run(["sh", "-c", command], timeout=120)
        assert done.exit_status == 0, (command, done.stderr)
        return done.stdout.decode()

    def install(self, directory: Path, driver: dict[str, bytes]) -> None:
        """The test's module with these files of the driver."""
        here = Path(page_reader.__file__).parent
        files = {name: driver[name] for name in ("call.c", "call.h", "pages.c", "pages.h")}
        files |= {name: (here / name).read_bytes() for name in ("Kbuild", "main.c")}
        cache = Cache()
        module = directory / "pager.ko"
        module.write_bytes(build_module(cache, debian_kernel(cache, DEFAULT_SERIES), "pager", files))
        self.vm.copy_in(module, "/root/pager.ko")

    def ask(self, length: int, **parameters: str | int) -> list[tuple[int, bytes]]:
        """(status, answer) of each request; a status below zero is an error of the driver's."""
        words = " ".join(f"{name}={value}" for name, value in {"length": length, **parameters}.items())
        said = self.sh(f"dmesg -c >/dev/null; insmod /root/pager.ko {words} && rmmod pager && dmesg")
        return [(int(status), bytes.fromhex(answer)) for status, answer in re.findall(r"pager: (\S+) (\S+)", said)]


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pager]:
    packages = ("tests.e2e.page_reader", "veil.formats", "veil.services")
    services = ServicesImage("tests.e2e.page_reader:Services", packages, memory=32 << 20)
    with ConfidentialVM(services=services, fresh=True) as vm:
        pager = Pager(vm)
        pager.install(tmp_path_factory.mktemp("module"), _DRIVER)
        yield pager


def content(length: int, number: int = 0) -> bytes:
    words = ((at + number) * 0x9E3779B97F4A7C15 & (1 << 64) - 1 for at in range(length // 8))
    return b"".join(word.to_bytes(8, "little") for word in words) + bytes(length % 8)


def digest(length: int, number: int = 0) -> bytes:
    return hashlib.sha256(content(length, number)).digest()


@pytest.mark.parametrize("buffer", ["vmalloc", "pages"])
@pytest.mark.parametrize("length", [1, PAGE, 5 * PAGE + 123])
def test_the_service_reads_the_buffer(guest: Pager, buffer: str, length: int) -> None:
    assert guest.ask(length, buffer=buffer, rounds=2) == [
        (Status.OK, digest(length, 0)),
        (Status.OK, digest(length, 1)),
    ]


def test_the_longest_buffer(guest: Pager) -> None:
    """More than one COPY_IN takes, and nearly 32 MiB."""
    length = MAX_PAGES * PAGE
    assert guest.ask(length) == [(Status.OK, digest(length))]
    assert guest.ask(length + 1) == [(-E2BIG, NOTHING)]
    # The list fits, but not with a body of more than 64 bytes: nobody is asked.
    assert guest.ask(length, wrong="body") == [(Status.BAD_REQUEST, NOTHING)]
    assert guest.ask(PAGE, wrong="body") == [(Status.UNAVAILABLE, NOTHING)], "asked: a body that this service knows not"


def test_the_modules_own_text(guest: Pager) -> None:
    """Addresses of modules are not vmalloc's on x86, and not the direct mapping's."""
    ((status, answer),) = guest.ask(PAGE, buffer="driver")
    assert status == Status.OK
    assert answer not in (NOTHING, digest(PAGE))


@pytest.mark.parametrize(
    ("length", "parameters", "error"),
    [
        (0, {}, EINVAL),
        (PAGE, {"wrong": "odd"}, EINVAL),
        (PAGE, {"buffer": "user"}, EFAULT),
        (2 * PAGE, {"buffer": "hole"}, EFAULT),
    ],
    ids=["empty", "not at a page's beginning", "a user's address", "a page that is not there"],
)
def test_buffers_that_are_none(guest: Pager, length: int, parameters: dict[str, str], error: int) -> None:
    assert guest.ask(length, **parameters) == [(-error, NOTHING)]


def test_a_page_twice(guest: Pager) -> None:
    assert guest.ask(3 * PAGE, wrong="twice") == [(Status.BAD_REQUEST, NOTHING)]
    assert guest.ask(3 * PAGE) == [(Status.OK, digest(3 * PAGE))]


def test_pages_that_are_not_the_kernels(guest: Pager) -> None:
    vcpu = guest.vm.hypervisor.vcpus[0]
    monitor_vmsa, kernel_vmsa = (vcpu.contexts[vmpl].vmcb.vmsa_pa for vmpl in (0, 3))
    monitor = monitor_vmsa & -(2 << 20)
    for gpa in (monitor, monitor + (2 << 20), monitor_vmsa, kernel_vmsa, 1 << 40, 0xFEC00000):
        assert guest.ask(3 * PAGE, wrong="page", gpa=gpa) == [(Status.BAD_REQUEST, NOTHING)], hex(gpa)
    # Not a page at all.
    assert guest.ask(3 * PAGE, wrong="page", gpa=0x1008) == [(Status.BAD_REQUEST, NOTHING)]
    # The same with a page that is: the zero page of the real-mode IDT and BIOS data, not of the buffer.
    ((status, answer),) = guest.ask(3 * PAGE, wrong="page", gpa=0x5000)
    assert status == Status.OK
    assert answer != digest(3 * PAGE)


@pytest.mark.parametrize("tickets", [True, False])
def test_an_answer_that_comes_too_late(
    guest: Pager, tmp_path: Path, tickets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host runs VeilMon only after the kernel has given up: its next request must not get the answer to the first.

    A driver without tickets takes it.
    """
    call = _DRIVER["call.c"]
    assert call.count(b"block->ticket++;") == 1
    if not tickets:
        guest.install(tmp_path, _DRIVER | {"call.c": call.replace(b"block->ticket++;", b"")})
    honest = msr_protocol._HANDLERS[MsrRequest.RUN_VMPL]
    tries = 0

    def run_vmpl(host: Hypervisor, vcpu: Vcpu, context: Context, value: int) -> int:
        nonlocal tries
        if value == run_vmpl_request(1):
            tries += 1
        if context.vmpl == 1 and value == run_vmpl_request(0) and tries <= _DECLARED.numbers["SERVICE_TRIES"]:
            value = run_vmpl_request(3)
        return honest(host, vcpu, context, value)

    with monkeypatch.context() as patch:
        patch.setitem(msr_protocol._HANDLERS, MsrRequest.RUN_VMPL, run_vmpl)
        answers = guest.ask(PAGE, rounds=2)
    if not tickets:
        guest.install(tmp_path, _DRIVER)
    late = digest(PAGE, 0)
    assert answers == [(NO_ANSWER, NOTHING), (Status.OK, digest(PAGE, 1) if tickets else late)]
