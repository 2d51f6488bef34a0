# SPDX-License-Identifier: GPL-2.0-or-later
"""An interactive program of the guest's on the user's terminal."""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Mapping, Sequence
from typing import Any

from veil._session import AgentSession
from veil.guest.agent_protocol import Exited, Failed, Output, Terminal
from veil.host import Hypervisor

__all__ = ["interactive"]

_CHUNK = 4096
_POLL_SECONDS = 0.2


def interactive(
    session: AgentSession, hypervisor: Hypervisor, argv: Sequence[str], environment: Mapping[str, str]
) -> int:
    """Run `argv` on a terminal of the guest's, joined to ours; returns its exit status."""
    job = session.start(argv, environment=environment, directory="/root", terminal=_size())
    done = threading.Event()
    stdin = sys.stdin.fileno()
    saved = termios.tcgetattr(stdin) if os.isatty(stdin) else None
    previous: Any = None
    reader = threading.Thread(target=_forward, args=(stdin, session, hypervisor, job, done), daemon=True)
    try:
        if saved is not None:
            tty.setraw(stdin)
            previous = signal.signal(
                signal.SIGWINCH, lambda *_: hypervisor.post(lambda: session.resize(job, _size()))
            )
        reader.start()
        for event in session.events(job):
            if isinstance(event, Output):
                os.write(sys.stdout.fileno(), event.data)
            elif isinstance(event, Exited):
                return event.status
            elif isinstance(event, Failed):
                os.write(sys.stderr.fileno(), f"{event.message}\r\n".encode())
                return 127
        return 1
    finally:
        done.set()
        if saved is not None:
            signal.signal(signal.SIGWINCH, previous)
            termios.tcsetattr(stdin, termios.TCSADRAIN, saved)


def _forward(stdin: int, session: AgentSession, hypervisor: Hypervisor, job: int, done: threading.Event) -> None:
    """The user's keys, into the run loop's thread."""
    while not done.is_set():
        if not select.select([stdin], [], [], _POLL_SECONDS)[0]:
            continue
        data = os.read(stdin, _CHUNK)
        if not data:
            data = b"\x04"  # end of a pipe: what a user would type
        hypervisor.post(lambda data=data: session.send(job, data))  # type: ignore[misc]
        if data == b"\x04":
            return


def _size() -> Terminal:
    columns, rows = shutil.get_terminal_size()
    return Terminal(rows, columns)
