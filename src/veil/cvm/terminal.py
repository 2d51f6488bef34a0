# SPDX-License-Identifier: GPL-2.0-or-later
"""An interactive program of the guest on the user's terminal."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from veil.cvm.session import AgentSession, start_failure
from veil.errors import VeilError
from veil.guest.agent.protocol import Exited, Failed, Output, Started, Terminal
from veil.host import Hypervisor

__all__ = ["interactive", "is_terminal", "type_ahead"]

_CHUNK = 4096
# How long keys wait at most for a program that starts.
_START_SECONDS = 1.0
_IFLAG, _LFLAG, _CHARACTERS = 0, 3, 6
_DISABLED = b"\0"  # _POSIX_VDISABLE of Linux
_DEFAULT_SIZE = os.terminal_size((80, 24))


def is_terminal() -> bool:
    """Is our stdin a terminal?"""
    try:
        return sys.stdin is not None and os.isatty(sys.stdin.fileno())
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def type_ahead() -> Iterator[None]:
    """While a guest comes up, keep what the user types for it as it was typed; the terminal is restored afterwards.

    A terminal in line mode would take ^D away, change CR, and echo keys that the guest will echo too. ^C still
    interrupts; ^\\ and ^Z, which would leave the terminal like this, are kept too. Does nothing without a terminal.
    """
    if not is_terminal():
        yield
        return
    stdin = sys.stdin.fileno()
    with _restored(stdin):
        mode = termios.tcgetattr(stdin)
        mode[_IFLAG] &= ~termios.ICRNL
        mode[_LFLAG] &= ~(termios.ICANON | termios.ECHO)
        for key in (termios.VQUIT, termios.VSUSP):
            mode[_CHARACTERS][key] = _DISABLED
        # Not TCSAFLUSH, which drops what was typed before.
        termios.tcsetattr(stdin, termios.TCSANOW, mode)
        yield


@contextlib.contextmanager
def _restored(descriptor: int) -> Iterator[None]:
    saved = termios.tcgetattr(descriptor)
    try:
        yield
    finally:
        # The terminal may have gone away, which is a reason to end and not one to complain. Nor may one that takes no
        # output (^S) stop us.
        with contextlib.suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSANOW, saved)


def interactive(
    session: AgentSession,
    hypervisor: Hypervisor,
    argv: Sequence[str],
    environment: Mapping[str, str],
    output: Callable[[bytes], None] | None = None,
) -> int:
    """Run `argv` on a terminal of the guest, joined to ours, which is stdin; returns its exit status.

    `output` gets what it prints, by default stdout. A terminal that hangs up hangs up the guest's. Raises
    CommandNotStarted.
    """
    stdin = sys.stdin.fileno()
    show = output or functools.partial(_write, sys.stdout.fileno())
    job = session.start(argv, environment=environment, directory="/root", terminal=_size(stdin))
    keys = _Keys(stdin, session, hypervisor, job)
    with _restored(stdin), _resized(stdin, session, hypervisor, job):
        tty.setraw(stdin, termios.TCSANOW)
        with keys:
            for event in session.events(job):
                if isinstance(event, Output):
                    show(event.data)
                elif isinstance(event, Started):
                    # A shell first has its terminal in line mode, and what comes in then loses its ^D in the change.
                    # When the guest is idle, the program waits for keys and has the terminal as it wants it.
                    hypervisor.run(until=lambda: hypervisor.idle, timeout=_START_SECONDS)
                    keys.let_through()
                elif isinstance(event, Exited):
                    return event.status
                elif isinstance(event, Failed):
                    raise start_failure(event)
    raise VeilError("the guest's agent ended the shell without a word")


@contextlib.contextmanager
def _resized(stdin: int, session: AgentSession, hypervisor: Hypervisor, job: int) -> Iterator[None]:
    """The guest's terminal has the size of ours."""

    def resize(*_: Any) -> None:
        hypervisor.post(lambda: session.resize(job, _size(stdin)))

    previous = signal.signal(signal.SIGWINCH, resize)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, previous)


class _Keys:
    """A thread that brings the user's keys into the run loop's thread. None is read that cannot be delivered."""

    def __init__(self, stdin: int, session: AgentSession, hypervisor: Hypervisor, job: int) -> None:
        self._stdin, self._session, self._hypervisor, self._job = stdin, session, hypervisor, job
        self._started = threading.Event()
        self._done, self._end = os.pipe()
        self._thread = threading.Thread(target=self._forward, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        os.close(self._end)
        self._started.set()
        self._thread.join()
        os.close(self._done)

    def let_through(self) -> None:
        """The program has its terminal as it wants it."""
        self._started.set()

    def _forward(self) -> None:
        self._started.wait()
        while True:
            ready = select.select([self._stdin, self._done], [], [])[0]
            if self._done in ready:
                return
            try:
                data = os.read(self._stdin, _CHUNK)
            except OSError:
                data = b""
            if not data:
                self._hypervisor.post(lambda: self._session.signal(self._job, signal.SIGHUP))
                return
            self._hypervisor.post(lambda data=data: self._session.send(self._job, data))  # type: ignore[misc]


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _size(descriptor: int) -> Terminal:
    # Not shutil's, which believes COLUMNS and LINES even after the window has changed.
    try:
        size = os.get_terminal_size(descriptor)
    except OSError:
        size = _DEFAULT_SIZE
    if not (size.columns and size.lines):
        size = _DEFAULT_SIZE
    return Terminal(size.lines, size.columns)
