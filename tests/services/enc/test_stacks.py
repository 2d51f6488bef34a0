# SPDX-License-Identifier: GPL-2.0-or-later
"""A stack of the runtime's that grows too far meets a page that is not there: the enclave ends, and nothing else of its
was overwritten.
"""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from tests.enclave_machine import EnclaveMachine, assemble_program, build_program
from tests.monitor.harness import PAGE
from tests.services.enc.believing import BELIEVING_FLAGS
from veil.formats.enclaves import THREAD_AREAS, THREAD_STRIDE, THREADS, ThreadPart
from veil.guest.enclaves.image import EnclaveImage
from veil.guest.enclaves.runtime.build import runtime_sources

#: getcpu, then exit_group.
_PROGRAM = """
_start:
    mov eax, 309
    xor edi, edi
    xor esi, esi
    xor edx, edx
    syscall
    mov eax, 231
    mov edi, 7
    syscall
"""
_THREADS = "runtime/src/threads.c"
#: A mistake in the runtime: a call of the program's has it call itself again and again.
_DEEPER = """
static __attribute__((noinline)) u64 deeper(u64 times)
{{
	volatile u8 frame[{frame}];

	frame[0] = 1;
	return times ? deeper(times - 1) + frame[0] : 0;
}}

HANDLER(do_getcpu)
{{
	if (deeper(1 << 30))
		return -EFAULT;
"""
#: Frames that touch each page of the stack, and such as leave out whole pages: the one below the stack, too.
_SMALL, _LARGE = 0x400, 0x3800
_ATTACKED = 125
_MOST_STEPS = 60_000


def _build(place: pytest.TempPathFactory, frame: int, *flags: str) -> EnclaveImage:
    sources = runtime_sources()
    text = sources[_THREADS].decode()
    assert text.count("HANDLER(do_getcpu)\n{\n") == 1
    sources[_THREADS] = text.replace("HANDLER(do_getcpu)\n{\n", _DEEPER.format(frame=frame)).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("veil.guest.enclaves.runtime.build.runtime_sources", lambda: sources)
        patch.setattr("veil.guest.enclaves.runtime.build.RUNTIME_FLAGS", (*BELIEVING_FLAGS, *flags))
        return build_program(assemble_program(place.mktemp("stacks"), _PROGRAM))


def _below(machine: EnclaveMachine) -> bytes:
    """What is on the stack that lies below the runtime's, which nothing uses in these runs."""
    found = machine.enclave(machine.number).tables.lookup(THREADS + ThreadPart.IST3_TOP - PAGE)
    assert found is not None
    return machine.view(2).read(found[0], PAGE)


def _until_overwritten(machine: EnclaveMachine) -> bool:
    for _ in range(_MOST_STEPS):
        if machine.step() is not None:
            return False
        # Its own frame, for which a look at the memory each time would take too long.
        if machine.registers.rsp < THREADS + ThreadPart.IST3_TOP and any(_below(machine)):
            return True
    return False


@pytest.mark.parametrize("frame", [_SMALL, _LARGE])
def test_a_stack_that_is_too_small_ends_the_enclave(tmp_path_factory: pytest.TempPathFactory, frame: int) -> None:
    with EnclaveMachine(_build(tmp_path_factory, frame)) as machine:
        ending = machine.finish_running()
        assert (ending.status, ending.output) == (_ATTACKED, b"")
        assert re.match("vector 14 with error code 0x[46] in the runtime", ending.words[-1]), ending.words
        assert not any(_below(machine))


def _attempt(image: EnclaveImage) -> bool:
    with EnclaveMachine(image) as machine:
        return _until_overwritten(machine)


def test_without_a_page_that_is_not_there(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counter-test: what lies below is overwritten."""
    image = _build(tmp_path_factory, _SMALL)
    assert not _attempt(image)
    monkeypatch.setattr("veil.services.enc.enclave.THREAD_AREAS", ((0, THREAD_STRIDE),))
    monkeypatch.setattr("veil.services.enc.enclave.THREAD_PAGES", THREAD_STRIDE // PAGE)
    assert _attempt(image)


def test_a_runtime_that_does_not_touch_each_page(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The counter-test: a large frame leaves out the page that is not there."""
    assert _attempt(_build(tmp_path_factory, _LARGE, "-fno-stack-clash-protection"))


def test_each_stack_ends_where_nothing_is() -> None:
    tops = (ThreadPart.IST1_TOP, ThreadPart.IST2_TOP, ThreadPart.IST3_TOP, ThreadPart.STACK_TOP)
    for ((_, end), (first, behind)), top in zip(pairwise(THREAD_AREAS), tops, strict=True):
        assert end + PAGE == first < top <= behind
