# SPDX-License-Identifier: GPL-2.0-or-later
"""Iago attacks in a booted guest: a kernel that answers an enclave's system calls with what no honest one answers.

`tests/guest/enclaves/test_hostile_answers.py` has a case for each call; here is one of each kind, in a real enclave.
The lie is written into the window with the kernel's rights, at the domain switch that goes back to the enclave.
"""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.snapshots import Resume
from tests.e2e.test_enclave_secrets import service_of
from tests.e2e.test_enclaves import ENCLAVES
from tests.guest.enclaves.native_runtime import compile_program
from tests.services.enc.believing import BELIEVING_FLAGS, believes_results
from veil.cache import Cache
from veil.cvm import ConfidentialVM, Result
from veil.formats.domains import ENCLAVE_VMPL
from veil.formats.enclave_pages import WindowBlock
from veil.formats.enclaves import RUNTIME, WINDOW
from veil.guest.enclaves.build import build_enclave
from veil.guest.enclaves.image import EnclaveImage
from veil.guest.enclaves.manifest import Manifest
from veil.guest.enclaves.runtime.build import runtime_sources
from veil.guest.enclaves.trusted_files import ComputerFiles
from veil.host import Event, VmplSwitchEvent

_ATTACKED = 125
_RESULT = 0x40
#: struct epoll_event
_EVENT = struct.Struct("<IQ")
_TEXT = r"""
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>
static char buffer[8], behind[8] = "private";
int main(int argc, char **argv)
{
	int pipes[2], quiet[2];
	struct epoll_event events[2] = { { .events = EPOLLIN, .data.u64 = 77 } };
	if (pipe(pipes) || pipe(quiet) || write(pipes[1], "words", 5) != 5)
		return 1;
	if (!strcmp(argv[1], "length")) {
		printf("%zd\n", read(pipes[0], buffer, 5));
	} else {
		int set = epoll_create1(0);
		epoll_ctl(set, EPOLL_CTL_ADD, dup2(pipes[0], 100), events);
		epoll_ctl(set, EPOLL_CTL_ADD, dup2(quiet[0], 101), events);
		printf("%d ", epoll_wait(set, events, 1, 1000));
		printf("%llx\n", (unsigned long long)events[0].data.u64);
	}
	return 0;
}
"""
_MANIFEST: dict[str, object] = {"memory": "4M", "threads": 1, "arguments": {"outside": True}}


class _Lie(NamedTuple):
    """About a system call; where its second argument points to, the bytes are written."""

    call: int
    result: int
    data: bytes
    honest: bytes
    """What the program says without it, and with it if it believes."""
    believed: bytes


_LIES = {
    "length": _Lie(0, 6, b"", b"5\n", b"6\n"),
    "count": _Lie(232, 2, _EVENT.pack(1, 100) + _EVENT.pack(1, 101), b"1 4d\n", b"2 4d\n"),
    "pointer": _Lie(232, 1, _EVENT.pack(1, RUNTIME), b"1 4d\n", b"1 %x\n" % RUNTIME),
}  # fmt: skip


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program(tmp_path_factory.mktemp("program"), _TEXT, "-static")


def _build(program: Path) -> EnclaveImage:
    return build_enclave(Cache(), ComputerFiles(), str(program), Manifest.of(_MANIFEST))


@pytest.fixture(scope="module")
def image(program: Path) -> EnclaveImage:
    return _build(program)


@pytest.fixture(scope="module")
def believing(program: Path) -> EnclaveImage:
    """With a runtime that takes what it is told."""
    sources = {f"runtime/src/{name}": text.encode() for name, text in believes_results().items()}
    with pytest.MonkeyPatch.context() as patch:
        changed = runtime_sources() | sources
        patch.setattr("veil.guest.enclaves.runtime.build.runtime_sources", lambda: changed)
        patch.setattr("veil.guest.enclaves.runtime.build.RUNTIME_FLAGS", BELIEVING_FLAGS)
        return _build(program)


def _run(vm: ConfidentialVM, folder: Path, image: EnclaveImage, what: str, lie: _Lie | None) -> Result:
    place, view = folder / "test.enclave", vm.machine.view(vmpl=3)
    place.write_bytes(image.pack())

    def answer(event: Event) -> None:
        if lie is None or not isinstance(event, VmplSwitchEvent) or event.target != ENCLAVE_VMPL:
            return
        for enclave in service_of(vm)._enclaves.values():
            pages = enclave.windows[0]
            block = WindowBlock.from_buffer_copy(view.read(pages[0], ctypes.sizeof(WindowBlock)))
            if block.nr == lie.call:
                view.write_u64(pages[0] + _RESULT, lie.result)
                page, offset = divmod(block.args[1] - WINDOW, 4096)
                # The number stays there when the call is done.
                if lie.data and 0 <= page < len(pages):
                    view.write(pages[page] + offset, lie.data)

    vm.hypervisor.on_event = answer
    try:
        return vm.run_enclave(place, [what], timeout=100)
    finally:
        vm.hypervisor.on_event = None


@pytest.fixture
def vm(resume: Resume) -> ConfidentialVM:
    return resume(services=ENCLAVES)


@pytest.mark.parametrize("what", _LIES)
def test_a_kernel_that_lies(
    vm: ConfidentialVM, tmp_path: Path, image: EnclaveImage, believing: EnclaveImage, what: str
) -> None:
    lie = _LIES[what]
    honest = _run(vm, tmp_path, image, what, None)
    assert (honest.stdout, honest.exit_status) == (lie.honest, 0), honest
    done = _run(vm, tmp_path, image, what, lie)
    assert (done.stdout, done.exit_status) == (b"", _ATTACKED), done

    # The counter-test: without the check the program is told what cannot be.
    done = _run(vm, tmp_path, believing, what, lie)
    assert (done.stdout, done.exit_status) == (lie.believed, 0), done
