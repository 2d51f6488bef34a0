# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the guest agent as an ordinary process at the end of a socket pair."""

import contextlib
import select
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from veil.guest.agent.protocol import (
    AgentConnection,
    Event,
    Exited,
    Failed,
    FileInfo,
    Output,
    Ready,
    Started,
    Stream,
    Terminal,
)

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
PATIENCE = 60.0


@dataclass
class Collected:
    """What came of one job."""

    output: dict[Stream, bytearray] = field(
        default_factory=lambda: {Stream.STDOUT: bytearray(), Stream.STDERR: bytearray()}
    )
    end: Exited | Failed | None = None
    info: FileInfo | None = None
    pid: int | None = None

    @property
    def stdout(self) -> bytes:
        return bytes(self.output[Stream.STDOUT])

    @property
    def stderr(self) -> bytes:
        return bytes(self.output[Stream.STDERR])

    @property
    def exit(self) -> Exited:
        assert isinstance(self.end, Exited), self.end
        return self.end

    @property
    def failure(self) -> Failed:
        assert isinstance(self.end, Failed), self.end
        return self.end


class AgentProcess:
    def __init__(self, agent: Path, buffer_size: int | None = None) -> None:
        self.socket, theirs = socket.socketpair()
        for end in (self.socket, theirs) if buffer_size else ():
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_size or 0)
        self.process = subprocess.Popen([agent, "--fd", str(theirs.fileno())], pass_fds=[theirs.fileno()])
        theirs.close()
        self.socket.setblocking(False)
        self.connection = AgentConnection()
        self.jobs: dict[int, Collected] = {}
        self.events: list[Event] = []
        self.unsent = b""
        # Jobs whose output is not to be acknowledged.
        self.stalled: set[int] = set()

    def open(self, nonce: int = 1) -> "AgentProcess":
        self.connection.hello(nonce)
        self.until(lambda: self.connection.ready)
        return self

    def close(self) -> None:
        self.socket.close()
        assert self.process.wait(PATIENCE) == 0

    def __enter__(self) -> "AgentProcess":
        return self.open()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def send(self, raw: bytes) -> None:
        """Bytes that need be no frames, after what the connection has said: a HELLO said again ends what was before."""
        self.unsent += self.connection.take() + raw

    def step(self, timeout: float = 0.05, read_at_most: int = 1 << 16) -> None:
        self.unsent += self.connection.take()
        readable, writable, _ = select.select([self.socket], [self.socket] if self.unsent else [], [], timeout)
        if writable:
            with contextlib.suppress(BlockingIOError):
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
        if readable and read_at_most:
            data = self.socket.recv(read_at_most)
            assert data, "the agent has gone"
            for event in self.connection.feed(data):
                self.take(event)

    def take(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Output):
            self.jobs[event.job].output[event.stream] += event.data
            if event.job not in self.stalled:
                self.connection.acknowledge(event)
        elif isinstance(event, Exited | Failed):
            self.jobs[event.job].end = event
        elif isinstance(event, FileInfo):
            self.jobs[event.job].info = event
        elif isinstance(event, Started):
            self.jobs[event.job].pid = event.pid
        elif isinstance(event, Ready):
            self.jobs.clear()

    def until(self, condition: Callable[[], bool], **options: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "the agent did not answer in time"
            self.step(**options)

    def start(self, *arguments: str | bytes, terminal: Terminal | None = None, directory: str = "/") -> int:
        job = self.connection.run(arguments, environment=ENVIRONMENT, directory=directory, terminal=terminal)
        self.jobs[job] = Collected()
        return job

    def finish(self, job: int, **options: int) -> Collected:
        self.until(lambda: self.jobs[job].end is not None, **options)
        return self.jobs[job]

    def run(self, *arguments: str | bytes, stdin: bytes = b"", directory: str = "/") -> Collected:
        job = self.start(*arguments, directory=directory)
        self.connection.write(job, stdin)
        self.connection.end(job)
        return self.finish(job)

    def put(self, path: Path, data: bytes, mode: int = 0o644) -> Collected:
        job = self.connection.put(str(path), mode)
        self.jobs[job] = Collected()
        self.connection.write(job, data)
        self.connection.end(job)
        return self.finish(job)

    def get(self, path: Path | str) -> Collected:
        job = self.connection.get(str(path))
        self.jobs[job] = Collected()
        return self.finish(job)
