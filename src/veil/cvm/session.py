# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands and files by way of the guest's agent: the protocol's engine, the channel's port, and the run loop."""

from __future__ import annotations

import errno
import functools
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from veil.errors import VeilError, describe
from veil.guest.agent.protocol import (
    AgentConnection,
    Event,
    Exited,
    Failed,
    FileInfo,
    Output,
    Stream,
    Terminal,
)
from veil.guest.errors import CommandNotStarted, GuestCommandError
from veil.host import Hypervisor, RunResult
from veil.host.devices import ConsolePort
from veil.private_files import FILE_MODE, FOLDER_MODE, replacing

__all__ = ["AgentSession", "start_failure"]

_CHUNK = 64 * 1024
#: Input that may wait in the host while the guest is slow.
_BACKLOG = 1 << 20
_BACKLOG_POLL_SECONDS = 0.005
_SIGKILL = 9


# The guest's trouble, and not the command's.
_GUEST_TROUBLE = frozenset((errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EPROTO))


def start_failure(event: Failed) -> GuestCommandError:
    """The exception for a command that could not be started."""
    message = f"{event.message} (in the guest)"
    kind = GuestCommandError if event.errno in _GUEST_TROUBLE else CommandNotStarted
    return kind(message, event.errno)


class _InputFailed(VeilError):
    """What a command's or a file's bytes are read from broke off."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot read the command's input: {describe(error)}")
        self.error = error


class AgentSession:
    """One session; one command or copy at a time."""

    def __init__(self, hypervisor: Hypervisor, port: ConsolePort) -> None:
        self._hypervisor = hypervisor
        self._port = port
        self._connection = AgentConnection()
        self._events: deque[Event] = deque()
        self._error: VeilError | None = None
        self._greeting: tuple[int, bytes] | None = None
        # The job whose input another thread supplies, and how much of that waits for the guest.
        self._supplied: int | None = None
        self._unsent = 0
        self._input_error: OSError | None = None
        port.on_data = self._received
        port.on_open = self._opened

    def open(self, nonce: int, entropy: bytes, *, timeout: float) -> bool:
        """Say hello and run the guest until the agent answers; False if it does not in time."""
        self._greeting = (nonce, entropy)
        self._greet()
        self._hypervisor.run(until=lambda: self._connection.ready or self._error is not None, timeout=timeout)
        self._raise_error()
        self._events.clear()
        return self._connection.ready

    def _opened(self, is_open: bool) -> None:
        if is_open and self._greeting is not None and not self._connection.ready:
            self._greet()

    def _greet(self) -> None:
        """Send HELLO with the current time: one queued earlier would set a booting guest's clock to the past."""
        assert self._greeting is not None
        nonce, entropy = self._greeting
        self._connection.hello(nonce, realtime_ns=time.time_ns(), entropy=entropy)
        if self._port.open:
            self._flush()

    def _received(self, data: bytes) -> None:
        try:
            self._events.extend(self._connection.feed(data))
        except VeilError as error:
            # Raised in the run loop's caller, not in the device that brought the bytes.
            self._error = error
        if self._supplied is not None:
            self._unsent = self._connection.unsent(self._supplied)
        self._flush()

    def _flush(self) -> None:
        data = self._connection.take()
        if data:
            self._port.write(data)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    # Jobs

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | Iterator[bytes] | None = None,
        stdout: Callable[[bytes], None] | None = None,
        stderr: Callable[[bytes], None] | None = None,
        environment: Mapping[str, str],
        directory: str = "/",
        timeout: float | None = None,
    ) -> tuple[bytes, bytes, int]:
        """Run a command to its end: (stdout, stderr, exit status). Raises TimeoutError after killing it."""
        collected: dict[Stream, list[bytes]] = {Stream.STDOUT: [], Stream.STDERR: []}
        sinks = {
            Stream.STDOUT: stdout or collected[Stream.STDOUT].append,
            Stream.STDERR: stderr or collected[Stream.STDERR].append,
        }
        job = self.start(argv, environment=environment, directory=directory)
        try:
            status = self._finish(job, sinks, stdin if stdin is not None else b"", timeout, failure=start_failure)
        except BaseException:
            self._abandon(job)
            raise
        return b"".join(collected[Stream.STDOUT]), b"".join(collected[Stream.STDERR]), status

    def start(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str],
        directory: str = "/",
        terminal: Terminal | None = None,
    ) -> int:
        """Start a command, on a terminal if one is given; returns its job number."""
        job = self._connection.run(argv, environment=environment, directory=directory, terminal=terminal)
        self._flush()
        return job

    def send(self, job: int, data: bytes) -> None:
        """Input for a started command."""
        self._connection.write(job, data)
        self._flush()

    def resize(self, job: int, terminal: Terminal) -> None:
        """The size of a started command's terminal."""
        self._connection.resize(job, terminal)
        self._flush()

    def signal(self, job: int, number: int) -> None:
        """A signal to a started command's session."""
        self._connection.signal(job, number)
        self._flush()

    def events(self, job: int, timeout: float | None = None) -> Iterator[Event]:
        """Run the guest and yield a job's events until it ends; raises TimeoutError."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            while self._events:
                event = self._events.popleft()
                if getattr(event, "job", None) != job:
                    continue
                yield event
                if isinstance(event, Output):
                    self._connection.acknowledge(event)
                    self._flush()
                if isinstance(event, Exited | Failed):
                    return
            self._raise_error()
            if self._input_error is not None:
                raise _InputFailed(self._input_error) from self._input_error
            left = None if end is None else max(0.0, end - time.monotonic())
            if self._wait(left) == RunResult.TIMEOUT:
                raise TimeoutError(f"the guest was not done after {timeout:g} seconds")

    def _wait(self, timeout: float | None) -> RunResult:
        return self._hypervisor.run(
            until=lambda: bool(self._events) or self._error is not None or self._input_error is not None,
            timeout=timeout,
        )

    def _finish(
        self,
        job: int,
        sinks: Mapping[Stream, Callable[[bytes], object]],
        source: bytes | Iterable[bytes],
        timeout: float | None,
        failure: Callable[[Failed], VeilError],
    ) -> int:
        done = threading.Event()
        if isinstance(source, bytes):
            self._connection.write(job, source)
            self._connection.end(job)
            self._flush()
        else:
            self._supplied, self._unsent, self._input_error = job, 0, None
            threading.Thread(target=self._supply, args=(job, source, done), daemon=True).start()
        try:
            for event in self.events(job, timeout):
                if isinstance(event, Output):
                    sinks[event.stream](event.data)
                elif isinstance(event, Exited):
                    return event.status
                elif isinstance(event, Failed):
                    raise failure(event)
        finally:
            done.set()
            self._supplied = self._input_error = None
        raise VeilError("the guest's agent ended a job without a word")

    def _supply(self, job: int, source: Iterable[bytes], done: threading.Event) -> None:
        """Another thread's part: read input, which may block forever, and hand it to the run loop's thread."""
        in_flight = 0

        def deliver(data: bytes) -> None:
            nonlocal in_flight
            self._connection.write(job, data)
            self._flush()
            self._unsent = self._connection.unsent(job)
            in_flight -= len(data)

        def finish() -> None:
            self._connection.end(job)
            self._flush()

        def fail(error: OSError) -> None:
            # Raised where the job is waited for: a command whose input broke off has not had its input.
            if not done.is_set():
                self._input_error = error

        try:
            for part in source:
                in_flight += len(part)
                self._hypervisor.post(functools.partial(deliver, part))
                # A guest that does not read must not make us hold all of its input.
                while in_flight + self._unsent + self._port.waiting > _BACKLOG:
                    if done.wait(_BACKLOG_POLL_SECONDS):
                        return
                if done.is_set():
                    return
        except OSError as error:
            self._hypervisor.post(functools.partial(fail, error))
            return
        self._hypervisor.post(finish)

    def _abandon(self, job: int) -> None:
        with suppress(VeilError):
            self._connection.signal(job, _SIGKILL)
            self._flush()

    # Files

    def copy_in(self, source: Path, target: str) -> None:
        """A file of the host to the guest; it appears when it is complete."""
        try:
            with open(source, "rb") as stream:
                mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
                job = self._connection.put(target, mode)
                self._flush()
                try:
                    self._finish(job, {}, iter(lambda: stream.read(_CHUNK), b""), None, failure=_copy_failure)
                except BaseException:
                    self._abandon(job)
                    raise
        except _InputFailed as failed:
            raise VeilError(f"cannot read {source}: {describe(failed.error)}") from failed.error
        except OSError as error:
            raise VeilError(f"cannot read {source}: {describe(error)}") from error

    def copy_out(self, source: str, target: Path) -> None:
        """A file of the guest to the host; it appears when it is complete.

        Of the guest's mode bits only the owner's count: whom to share it with is not the guest's to say.
        """
        job = self._connection.get(source)
        self._flush()
        try:
            self._take(job, target)
        except OSError as error:
            self._abandon(job)
            raise VeilError(f"cannot write {target}: {describe(error)}") from error
        except BaseException:
            self._abandon(job)
            raise

    def _take(self, job: int, target: Path) -> None:
        with replacing(target) as stream:
            for event in self.events(job):
                if isinstance(event, FileInfo):
                    os.fchmod(stream.fileno(), event.mode & FOLDER_MODE | FILE_MODE)
                elif isinstance(event, Output):
                    stream.write(event.data)
                elif isinstance(event, Failed):
                    raise _copy_failure(event)


def _copy_failure(event: Failed) -> GuestCommandError:
    room = ": its files are in its memory, and --memory gives it more" if event.errno == errno.ENOSPC else ""
    return GuestCommandError(f"{event.message} (in the guest{room})", event.errno)
