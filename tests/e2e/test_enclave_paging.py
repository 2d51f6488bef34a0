# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs with more memory than enclaves may have: pages go and come, and what comes back wrong ends them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.disk_guest import NETWORK, disk_guest
from tests.e2e.snapshots import Resume, RunSnapshots
from tests.e2e.test_enclaves import ENCLAVES, counts
from tests.guest.enclaves.native_runtime import compile_program
from veil.cache import Cache
from veil.cvm import ConfidentialVM, Result
from veil.cvm.enclaves import enclave_command, image_place
from veil.formats.enclave_calls import EnclaveCall, Return
from veil.formats.enclaves import ARENA
from veil.formats.page_sizes import PAGE_SIZE
from veil.guest.enclaves.build import build_enclave
from veil.guest.enclaves.image import EnclaveImage
from veil.guest.enclaves.manifest import Manifest
from veil.guest.enclaves.trusted_files import ComputerFiles
from veil.services import KernelRequest
from veil.services.context import Asking
from veil.services.enc.paging import AwayPages
from veil.services.enc.service import EncService
from veil.services.program import ServiceDomain

PAGES_OF_MIB = 256
SIZE, LIMIT, THREADS = 10, 7, 2
#: Each thread has a word of its own in every page, looks at some here and there, then changes all in turn.
_PROGRAM = """
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
enum { PAGES = SIZE << 8 };
static volatile uint64_t (*pages)[512];
static void walk_one(uint64_t at, uint64_t me, uint64_t round)
{
	uint64_t expected = (at * 64 + me) * 0x9E3779B97F4A7C15 + round;
	if (round && pages[at][me * 64] != expected - 1)
		printf("wrong: page %lu of thread %lu is %lx\\n", at, me, pages[at][me * 64]), exit(9);
	pages[at][me * 64] = expected;
}
static void *walk(void *me)
{
	for (uint64_t i = 0; i < PAGES; i++)
		walk_one(i, (uintptr_t)me, 0);
	for (uint64_t i = 0; i < HOPS; i++) {
		walk_one(i * 37 % PAGES, (uintptr_t)me, 1);
		walk_one(i * 37 % PAGES, (uintptr_t)me, 0);
	}
	for (uint64_t i = 0; i < ROUNDS * PAGES; i++)
		walk_one(i % PAGES, (uintptr_t)me, 1 + i / PAGES);
	return NULL;
}
int main(void)
{
	pthread_t threads[THREADS];
	pages = aligned_alloc(4096, PAGES * 4096ul);
	for (uintptr_t i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, walk, (void *)i))
			return 2;
	for (uintptr_t i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	puts("good");
	return 0;
}
"""


def build(folder: Path, threads: int, size: int = SIZE, rounds: int = 2, hops: int = 0) -> EnclaveImage:
    flags = (
        "-static",
        "-pthread",
        "-O2",
        f"-DSIZE={size}",
        f"-DTHREADS={threads}",
        f"-DROUNDS={rounds}L",
        f"-DHOPS={hops}",
    )
    program = compile_program(folder, _PROGRAM, *flags)
    manifest = Manifest.of({"memory": f"{size + 8}M", "threads": threads + 1})
    return build_enclave(Cache(), ComputerFiles(), str(program), manifest)


def put(vm: ConfidentialVM, folder: Path, image: EnclaveImage) -> str:
    """The command."""
    place = folder / "paged.enclave"
    place.write_bytes(image.pack())
    vm.copy_in(place, image_place(place))
    return " ".join(enclave_command(place, []))


def shell(vm: ConfidentialVM, script: str) -> Result:
    return vm.run(["sh", "-c", script], timeout=300)


def limited(vm: ConfidentialVM, mib: int) -> None:
    assert shell(vm, f"echo {mib} > /sys/module/veil/parameters/enc_limit").exit_status == 0


@pytest.mark.soak
@pytest.mark.parametrize("vcpus", [1, 2])
def test_twice_the_limit(resume: Resume, tmp_path: Path, vcpus: int) -> None:
    """Threads walk through all of it; what they have together stays below the limit, however many VCPUs run them."""
    vm = resume(services=ENCLAVES, vcpus=vcpus)
    command = put(vm, tmp_path, build(tmp_path, THREADS, rounds=1, hops=40))
    limited(vm, LIMIT)
    watch = "while sleep 0.3; do grep -o 'pages [0-9]*' /dev/veil; done > /tmp/pages & watch=$!"
    result = shell(vm, f"{watch}; {command}; echo ended $?; kill $watch; cat /tmp/pages")
    assert result.stdout.startswith(b"good\nended 0\n"), result
    most = max(map(int, re.findall(rb"pages (\d+)", result.stdout)))
    assert PAGES_OF_MIB * (LIMIT - 1) <= most <= PAGES_OF_MIB * LIMIT
    found = counts(vm)
    assert (found["enclaves"], found["pages"]) == (0, 0)
    # Half of them had to, at least, for the last round alone.
    assert found["returned"] > (SIZE - LIMIT) * PAGES_OF_MIB
    assert found["reclaimed"] >= found["returned"]


def test_two_that_are_each_larger_than_what_they_have_together(resume: Resume, tmp_path: Path) -> None:
    vm = resume(services=ENCLAVES)
    command = put(vm, tmp_path, build(tmp_path, 1, 6))
    limited(vm, LIMIT)
    result = shell(vm, f"{command} & {command}; wait")
    assert result.stdout == b"good\n" * 2, result
    assert counts(vm)["pages"] == 0


def test_without_a_limit_and_without_swap_nothing_goes(resume: Resume, tmp_path: Path) -> None:
    vm = resume(services=ENCLAVES)
    result = shell(vm, put(vm, tmp_path, build(tmp_path, 1)))
    assert result.stdout == b"good\n", result
    assert counts(vm)["reclaimed"] == 0


def test_more_memory_than_the_guest_has(snapshots: RunSnapshots, disk_image: Path, tmp_path: Path) -> None:
    """Without a limit, and with a place to swap: a disk, which is the host's."""
    path, disks = disk_guest(snapshots, disk_image)
    with ConfidentialVM.restore(path, disks=disks, network=NETWORK) as vm:
        size = int(shell(vm, "free -m").stdout.split()[9]) + 10
        command = put(vm, tmp_path, build(tmp_path, 1, size, rounds=1))
        assert shell(vm, "mkswap /dev/vdc && swapon /dev/vdc").exit_status == 0
        result = shell(vm, command)
        assert result.stdout == b"good\n", result
        found = counts(vm)
        assert found["returned"] > 10 * PAGES_OF_MIB
        assert found["pages"] == 0
        # Many at a time.
        assert found["paging"] < found["reclaimed"] / 10


# What a hostile kernel brings back. It is played where the request arrives: all that it names is the kernel's still.


class HostileKernel:
    """Keeps all that it was ever given, and brings back what `attack(this, address, content)` says."""

    def __init__(self, vm: ConfidentialVM, attack: Callable[[HostileKernel, int, bytes], bytes]) -> None:
        self.seen: dict[int, list[bytes]] = {}
        self.attacks = 0
        self._memory = vm.machine.view(vmpl=3)
        self._attack = attack
        services = vm.machine.hosted_program(vm.hypervisor.vcpus[0].contexts[1].vmcb.vmsa_pa)
        assert isinstance(services, ServiceDomain)
        (enc,) = (service for service in services.services if isinstance(service, EncService))
        self._honest = enc.kernel_request
        enc.kernel_request = self._request  # type: ignore[method-assign]

    def _request(self, request: KernelRequest) -> bytes | Asking[bytes]:
        if request.call == EnclaveCall.RETURN:
            for va, page in zip(Return.parse(request.body).addresses, request.pages, strict=True):
                content = self._memory.read(page, PAGE_SIZE)
                brought = self._attack(self, va, content) if self.is_of_the_array(va) else content
                self.seen.setdefault(va, []).append(content)
                if brought != content:
                    self._memory.write(page, brought)
                    self.attacks += 1
        return self._honest(request)

    def is_of_the_array(self, va: int) -> bool:
        """Whose words the program looks at. A stack has fewer pages in use, and without it the program would crash."""
        return va >= ARENA and all(va - before * PAGE_SIZE in self.seen for before in range(1, 9))


def one_bit(kernel: HostileKernel, va: int, content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


def an_older_one(kernel: HostileKernel, va: int, content: bytes) -> bytes:
    return kernel.seen[va][0] if va in kernel.seen else content


def another_page(kernel: HostileKernel, va: int, content: bytes) -> bytes:
    others = (place for place in kernel.seen if place != va and kernel.is_of_the_array(place))
    return next((kernel.seen[place][-1] for place in others), content)


@pytest.mark.parametrize("attack", [one_bit, an_older_one, another_page])
def test_what_comes_back_wrong_ends_the_program(
    resume: Resume,
    tmp_path: Path,
    attack: Callable[[HostileKernel, int, bytes], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vm = resume(services=ENCLAVES)
    command = put(vm, tmp_path, build(tmp_path, 1))
    limited(vm, LIMIT)
    kernel = HostileKernel(vm, attack)
    result = shell(vm, command)
    assert kernel.attacks
    # It never goes on with it: it can only be ended.
    assert result.stdout == b""
    assert result.exit_status != 0
    assert counts(vm)["enclaves"] == 0
    # Without tags the program goes on with whatever it is given.
    kernel.seen.clear()
    monkeypatch.setattr(AwayPages, "seal", lambda self, va, content: content)
    monkeypatch.setattr(AwayPages, "open", lambda self, va, content: content)
    result = shell(vm, command)
    assert result.stdout.startswith(b"wrong: page"), result
    assert result.exit_status == 9
