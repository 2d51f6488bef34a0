# SPDX-License-Identifier: GPL-2.0-or-later
"""Enclaves that really run, one instruction at a time if a test wants: VeilMon, VeilS-ENC and the core are real,
host and process are played by the test.

The bench of VeilMon's tests has no core; here it gets one. A program is an ordinary one for Linux, with Veil's own
runtime around it. Of system calls the process does what `answers` has, `write` and `getpid`; the rest it refuses.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from tests.monitor.harness import FREE, MONITOR, PAGE, RAM, NoCipher
from tests.services.enc.enclave_bench import EnclaveBench
from veil.cache import Cache
from veil.formats.enclave_calls import EnclaveCall
from veil.formats.enclave_pages import WindowBlock, WindowState
from veil.formats.enclave_reports import EnclaveWord
from veil.formats.enclaves import THREAD_AREAS, THREADS, WINDOW
from veil.formats.status import Status
from veil.guest.enclaves.build import build_enclave
from veil.guest.enclaves.image import EnclaveImage
from veil.guest.enclaves.manifest import Manifest
from veil.guest.enclaves.trusted_files import ComputerFiles
from veil.services.enc.enclave import Enclave
from veil.snp import ExitCode
from veil.snp._engine import Engine
from veil.snp.guest_bus import GuestBus
from veil.snp.host_view import HostView
from veil.snp.layouts import EVENT_VALID, Vmcb, Vmsa

__all__ = ["SMALL", "EnclaveMachine", "Ending", "Starved", "assemble_program", "build_program"]

#: A manifest for the little memory that the bench has.
SMALL: dict[str, object] = {"memory": "1M", "stack": "64K", "threads": 1}
_WRITE, _GETPID, _ENOSYS = 1, 39, -38
#: Of the process.
_NUMBER = 1234
_SECONDS = 5
_RESULT = 0x40
#: A program that leaves so often gets nowhere.
_MOST_LEAVES = 300


class Starved(AssertionError):
    """It runs, and comes to no end."""


class Ending(NamedTuple):
    """How an enclave ended: its status, or the exit that no host can resolve; and what it has said."""

    status: int | ExitCode
    output: bytes
    words: tuple[str, ...]
    """In the protected log."""


@dataclass(frozen=True)
class _State:
    """Of everything that changes while an enclave runs."""

    memory: NDArray[np.uint64]
    enclave: str
    output: bytes
    words: tuple[str, ...]


def assemble_program(place: Path, text: str) -> Path:
    """A static program of instructions (Intel syntax, as C preprocessor input), which begins at `_start`."""
    source = place / "program.S"
    source.write_text(f'.intel_syntax noprefix\n.globl _start\n{text}\n.section .note.GNU-stack, "", @progbits\n')
    flags = ["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"]
    command: list[str | Path] = ["cc", *flags, "-o", place / "program", source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return place / "program"


def build_program(program: Path, **manifest: object) -> EnclaveImage:
    """The image of a program of this computer."""
    return build_enclave(Cache(), ComputerFiles(), str(program), Manifest.of({**SMALL, **manifest}))


class EnclaveMachine(EnclaveBench):
    """A machine with one enclave that runs; slot 0 is its only one."""

    def __init__(self, image: EnclaveImage) -> None:
        super().__init__()
        code_map = np.zeros(RAM // PAGE, dtype=np.uint8)
        self.engine = Engine(self.memory, self.rmp, code_map.ctypes.data, ())
        self.bus = GuestBus(
            self.memory, self.rmp, NoCipher(), code_map=code_map, on_code_write=self.engine.code_written
        )
        self.host = HostView(self.bus)
        self.boot()
        self.number = self.make(image.layout, image.content, most=256)
        # All of it at once: what `back` brings back is memory, and not whose it is.
        if image.layout.pool_pages:
            assert self.donate(self.number, self.frames(image.layout.pool_pages)) == Status.OK
        self.output = b""
        self.words: tuple[str, ...] = ()
        self.service._ledger._record = self._note
        self.answers: dict[int, Callable[[WindowBlock], int]] = {}
        self.vmcb = Vmcb(vmsa_pa=self.context)
        self._changing = np.arange((MONITOR - FREE) // PAGE)
        self._before: NDArray[np.uint64] | None = None

    def close(self) -> None:
        """The core's memory."""
        self.engine.close()
        if self._before is not None:
            others = np.setdiff1d(np.arange(len(self._before)), self._changing)
            assert (self._all()[others] == self._before[others]).all(), "what was not brought back has changed"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _note(self, word: bytes, /, *, urgent: bool = False) -> None:
        self.words += (EnclaveWord.parse(word).words,)

    # What there is

    @property
    def context(self) -> int:
        """Where the VMSA is."""
        return self.enclave(self.number).contexts[0]

    @property
    def registers(self) -> Vmsa:
        """As they are now: writing one changes it."""
        return self.vmsa(self.context)

    def read_window(self, va: int, length: int) -> bytes:
        """As the process reads it."""
        pages = self.enclave(self.number).windows[0]
        found = b""
        while len(found) < length:
            page, offset = divmod(va + len(found) - WINDOW, PAGE)
            found += self.kernel.read(pages[page] + offset, min(PAGE - offset, length - len(found)))
        return found

    def write_window(self, va: int, data: bytes) -> None:
        """As the process writes it, within a page."""
        page, offset = divmod(va - WINDOW, PAGE)
        self.kernel.write(self.enclave(self.number).windows[0][page] + offset, data)

    # The host

    def vmrun(self, vmcb: Vmcb | None = None) -> ExitCode:
        """To the next exit, five seconds at most."""
        vmcb = vmcb or self.vmcb
        deadline = time.monotonic_ns() + _SECONDS * 10**9
        self.engine.vmrun_function(self.engine.handle, ctypes.addressof(vmcb), deadline)
        return ExitCode(vmcb.exit_code)

    def inject(self, event: int) -> ExitCode:
        """VMRUN with an event, to its delivery."""
        vmcb = Vmcb(vmsa_pa=self.context, event_inj=event | EVENT_VALID, nrip=self.registers.rip)
        self.engine.set_single_step(True)
        code = self.vmrun(vmcb)
        self.engine.set_single_step(False)
        return code

    def step(self) -> Ending | None:
        """One instruction; whatever the enclave asks for then is done."""
        self.engine.set_single_step(True)
        code = self.vmrun()
        self.engine.set_single_step(False)
        return None if code == ExitCode.INTR else self.serve(code)

    def finish_running(self) -> Ending:
        """To the end."""
        for _ in range(_MOST_LEAVES):
            ending = self.serve(self.vmrun())
            if ending is not None:
                return ending
        raise Starved("the enclave gets nowhere")

    # The process

    def serve(self, code: ExitCode) -> Ending | None:
        """What an honest process and driver do after an exit."""
        if code == ExitCode.INTR:
            raise AssertionError(f"the enclave loops at {self.registers.rip:#x}")
        if code != ExitCode.VMGEXIT:
            return Ending(code, self.output, self.words)
        block = WindowBlock.from_buffer_copy(self.read_window(WINDOW, ctypes.sizeof(WindowBlock)))
        if block.state == WindowState.EXIT:
            return Ending(int(block.args[0]), self.output, self.words)
        if block.state == WindowState.SERVICE:
            served = self.enc(EnclaveCall.SERVE, self.number.to_bytes(4, "little") + bytes(4))
            assert served == (Status.OK, b"")
        elif block.state == WindowState.SYSCALL:
            result = self._call(block)
            self.write_window(WINDOW + _RESULT, result.to_bytes(8, "little", signed=True))
        elif block.state != WindowState.IDLE:
            raise AssertionError(f"the enclave asks for {block.state}")
        self.write_window(WINDOW, bytes(4))
        return None

    def _call(self, block: WindowBlock) -> int:
        if block.nr in self.answers:
            return self.answers[block.nr](block)
        if block.nr == _GETPID:
            return _NUMBER
        if block.nr != _WRITE:
            return _ENOSYS
        self.output += self.read_window(block.args[1], block.args[2])
        return int(block.args[2])

    # Again and again from one state

    def learn(self) -> None:
        """From now on `keep` and `back` are about the pages that change while the enclave runs; `close` looks at the
        others."""
        state = self.keep()
        before = self._all().copy()
        self.finish_running()
        changed = {int(page) for page in np.flatnonzero((self._all() != before).any(axis=1))}
        enclave = self.enclave(self.number)
        area = [enclave.tables.lookup(THREADS + at) for part in THREAD_AREAS for at in range(*part, PAGE)]
        own = [*enclave.contexts, *enclave.windows[0], *(found[0] for found in area if found is not None)]
        self.back(state)
        self._before = before
        self._changing = np.array(sorted(changed | {page - FREE >> 12 for page in own}))

    def _all(self) -> NDArray[np.uint64]:
        return self.memory.words[FREE // PAGE : MONITOR // PAGE]

    def keep(self) -> _State:
        """For `back`."""
        memory = self._all()[self._changing].copy()
        return _State(memory, json.dumps(self.enclave(self.number).dump()), self.output, self.words)

    def back(self, state: _State) -> None:
        """All as it was."""
        changed = (self._all()[self._changing] != state.memory).any(axis=1)
        for at in np.flatnonzero(changed):
            page = self._changing[at]
            self._all()[page] = state.memory[at]
            self.bus.written(FREE + int(page) * PAGE, PAGE)
        guest: Any = self.service.context.guest
        self.service._enclaves[self.number] = Enclave.load(guest, json.loads(state.enclave))
        self.output, self.words = state.output, state.words
