# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's end of the guest agent's protocol, without any I/O: bytes in, events out, and bytes to send.

A frame is a header of 16 bytes (little-endian) and a payload: u32 magic 'VEIL', u32 payload length, u16 type, u16
stream (0 stdin, 1 stdout, 2 stderr), u32 job. Each job (a command, or a file on its way) has a number that the host
chooses. Each stream of a job has a window: a sender sends at most what its receiver has granted, so that one slow
reader never stops another job. The agent's end is in agent/; the two tables of frame types are checked against each
other in the tests.

HELLO opens a session and carries a nonce: the agent drops all earlier jobs, and everything that it sends before its
answer with this nonce belongs to the past (a guest resumed from a snapshot may be anywhere in an old session).

The guest is hostile: every byte is checked, and a frame that an honest agent would not send raises AgentError, after
which the connection is dead. What a guest can make us hold is bounded by the windows.
"""

import struct
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum

from veil.formats.printable import printable
from veil.guest.errors import AgentError

MAGIC = 0x4C494556
VERSION = 1
MAX_PAYLOAD = 256 * 1024
DATA_CHUNK = 32 * 1024
WINDOW = 256 * 1024

_HEADER = struct.Struct("<IIHHI")
_MAX_TEXT = 4096


class HostFrame(IntEnum):
    """Frames from the host."""

    HELLO = 1
    EXEC = 2
    DATA = 3
    END = 4
    SIGNAL = 5
    RESIZE = 6
    CREDIT = 7
    PUT = 8
    GET = 9
    PING = 10


class AgentFrame(IntEnum):
    """Frames from the agent."""

    HELLO = 64
    STARTED = 65
    DATA = 66
    EXIT = 67
    FAILED = 68
    CREDIT = 69
    FILE = 70
    GARBAGE = 71
    PONG = 72


class Stream(IntEnum):
    """A stream of a job. A command on a terminal has only STDIN and STDOUT; a file sent by the agent is its STDOUT."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2


_KINDS, _STREAMS = frozenset(AgentFrame), frozenset(Stream)


@dataclass(frozen=True)
class Ready:
    """The agent has answered HELLO: jobs can be started."""

    max_jobs: int


@dataclass(frozen=True)
class Started:
    """The command runs."""

    job: int
    pid: int


@dataclass(frozen=True)
class Output:
    """Bytes of a stream. Give their room back with `acknowledge` when they have been dealt with."""

    job: int
    stream: Stream
    data: bytes


@dataclass(frozen=True)
class FileInfo:
    """The file that `get` asked for is there; its contents follow as Output."""

    job: int
    mode: int
    size: int
    modified_ns: int


@dataclass(frozen=True)
class Exited:
    """The job is over: `code` for a command that ended by itself (0 for a file that arrived), else `signal`."""

    job: int
    code: int | None
    signal: int | None = None

    @property
    def status(self) -> int:
        """The exit status as shells give it: 128 + number for a signal."""
        return self.code if self.code is not None else 128 + (self.signal or 0)


@dataclass(frozen=True)
class Failed:
    """The job could not be started or not be finished: the guest's errno and what it says to it."""

    job: int
    errno: int
    message: str


@dataclass(frozen=True)
class Pong:
    """The answer to `ping`."""

    data: bytes


Event = Ready | Started | Output | FileInfo | Exited | Failed | Pong


@dataclass(frozen=True)
class Terminal:
    """The size of a command's terminal."""

    rows: int = 24
    columns: int = 80


class _Kind(Enum):
    COMMAND = 1
    PUT = 2
    GET = 3


@dataclass
class _Job:
    kind: _Kind
    started: bool = False
    window_in: int = WINDOW
    pending: deque[memoryview] = field(default_factory=deque)
    ending: bool = False
    ended: bool = False
    # How much the agent may still send of stdout and stderr, and what was read and not yet granted again.
    window_out: dict[Stream, int] = field(default_factory=lambda: {Stream.STDOUT: WINDOW, Stream.STDERR: WINDOW})
    read: dict[Stream, int] = field(default_factory=lambda: {Stream.STDOUT: 0, Stream.STDERR: 0})


class AgentConnection:
    """One connection to the agent. `feed` what comes from the guest; send it what `take` gives."""

    def __init__(self) -> None:
        self._out = bytearray()
        self._in = bytearray()
        self._jobs: dict[int, _Job] = {}
        self._next = 1
        self._hello = b""
        self._answer = b""
        self._nonce = 0
        self._ready = False
        #: pings that the agent has not answered
        self._pings = 0
        self._dead: str | None = None

    @property
    def ready(self) -> bool:
        """Whether the agent has answered."""
        return self._ready

    def hello(self, nonce: int, *, realtime_ns: int = 0, entropy: bytes = bytes(32)) -> None:
        """Open a session. The agent sets the guest's clock (unless 0) and stirs `entropy` into its random state.

        The agent may not be there yet: its first frame makes us send HELLO again.
        """
        if not 0 < nonce < 1 << 64 or len(entropy) != 32:
            raise ValueError("a nonce is a nonzero u64, entropy is 32 bytes")
        self._hello = _frame(HostFrame.HELLO, 0, struct.pack("<IIQQ", VERSION, 0, nonce, realtime_ns) + entropy)
        # What an agent answers to this HELLO, as far as it is fixed: the mark that the search in `feed` looks for.
        self._answer = _HEADER.pack(MAGIC, 24, AgentFrame.HELLO, 0, 0)
        self._nonce = nonce
        self._ready = False
        self._pings = 0
        self._dead = None
        self._jobs.clear()
        self._in.clear()
        self._out[:] = self._hello

    def run(
        self,
        arguments: Sequence[str | bytes],
        *,
        environment: Mapping[str, str],
        directory: str = "/",
        terminal: Terminal | None = None,
    ) -> int:
        """Start a command. Its environment is exactly `environment`, whose PATH is where the program is looked for."""
        if not arguments:
            raise ValueError("a command needs a program")
        strings = [directory, *arguments, *(f"{name}={value}" for name, value in environment.items())]
        raw = [text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape") for text in strings]
        if any(b"\0" in text for text in raw):
            raise AgentError("a command, its directory and its environment cannot contain NUL bytes")
        size = terminal or Terminal(0, 0)
        head = struct.pack(
            "<IHHII", terminal is not None, _u16(size.rows), _u16(size.columns), len(arguments), len(environment)
        )
        payload = head + b"".join(text + b"\0" for text in raw)
        if len(payload) > MAX_PAYLOAD:
            raise AgentError(f"the command line is too long ({len(payload)} bytes of at most {MAX_PAYLOAD})")
        return self._start(_Kind.COMMAND, HostFrame.EXEC, payload)

    def put(self, path: str, mode: int = 0o644) -> int:
        """Begin to send a file; `write` its contents and `end`. It appears at `path` only when it is complete."""
        return self._start(_Kind.PUT, HostFrame.PUT, struct.pack("<I", mode & 0o7777) + _path(path))

    def get(self, path: str) -> int:
        """Ask for a file."""
        return self._start(_Kind.GET, HostFrame.GET, _path(path))

    def write(self, job: int, data: bytes) -> None:
        """Send to a job's stdin. What exceeds the window waits here: see `unsent`."""
        state = self._jobs.get(job)
        if state is None or state.kind is _Kind.GET:
            return  # over already: a program need not read all its input
        if state.ending:
            raise ValueError("the job's input has ended")
        if data:
            state.pending.append(memoryview(bytes(data)))
        self._push(job, state)

    def end(self, job: int) -> None:
        """End a job's stdin, after what has been written."""
        state = self._jobs.get(job)
        if state is None or state.kind is _Kind.GET:
            return
        state.ending = True
        self._push(job, state)

    def unsent(self, job: int) -> int:
        """How many bytes written to a job wait for its window. A caller with much to write keeps this small."""
        state = self._jobs.get(job)
        return sum(map(len, state.pending)) if state else 0

    def acknowledge(self, output: Output) -> None:
        """Say that this output has been dealt with, so that the agent may send as much again."""
        state = self._jobs.get(output.job)
        if state is None:
            return
        state.read[output.stream] += len(output.data)
        grant = state.read[output.stream]
        # Not for each few bytes: half a window left keeps the agent busy.
        if grant >= WINDOW // 4:
            state.read[output.stream] = 0
            state.window_out[output.stream] += grant
            self._out += _frame(HostFrame.CREDIT, output.job, struct.pack("<I", grant), output.stream)

    def signal(self, job: int, number: int) -> None:
        """Send a signal to a command's session; any signal cancels a file on its way."""
        if job in self._jobs:
            self._out += _frame(HostFrame.SIGNAL, job, struct.pack("<I", number))

    def resize(self, job: int, terminal: Terminal) -> None:
        """Tell a command's terminal its new size."""
        if job in self._jobs:
            size = struct.pack("<HH", _u16(terminal.rows), _u16(terminal.columns))
            self._out += _frame(HostFrame.RESIZE, job, size)

    def ping(self, data: bytes = b"") -> None:
        """Ask for a Pong with the same (at most 64) bytes."""
        self._pings += 1
        self._out += _frame(HostFrame.PING, 0, data[:64])

    def take(self, limit: int | None = None) -> bytes:
        """What is to be sent to the guest now, at most `limit` bytes; it is not given twice."""
        data = bytes(self._out[:limit])
        del self._out[: len(data)]
        return data

    def feed(self, data: bytes) -> list[Event]:
        """Take in bytes from the guest; returns what they mean."""
        if self._dead is not None:
            raise AgentError(self._dead)
        self._in += data
        events: list[Event] = []
        try:
            if not self._ready and not self._find_answer(events):
                return events
            while (frame := self._next_frame()) is not None:
                events += self._handle(*frame)
        except AgentError as error:
            self._dead = str(error)
            # What came before the bad frame is still true; the error shows at the next call.
            if events:
                return events
            raise
        return events

    def _find_answer(self, events: list[Event]) -> bool:
        """Skip to the answer to our HELLO. Until then nothing can be trusted to be in step, so the bytes decide."""
        while self._answer and (at := self._in.find(self._answer)) >= 0:
            if len(self._in) < at + _HEADER.size + 24:
                del self._in[:at]
                return False
            version, max_payload, window, max_jobs, nonce = struct.unpack_from("<IIIIQ", self._in, at + _HEADER.size)
            del self._in[: at + _HEADER.size + 24]
            if nonce == self._nonce:
                if version != VERSION or max_payload != MAX_PAYLOAD or window != WINDOW:
                    raise AgentError(f"the guest's agent speaks version {version} of the protocol, not {VERSION}")
                self._ready = True
                events.append(Ready(max_jobs))
                return True
            if nonce == 0:
                # It has only just come up, and our HELLO may have been sent to nobody. If not, it answers twice.
                self._out += self._hello
        if len(self._in) >= _HEADER.size:
            del self._in[: -_HEADER.size + 1]
        return False

    def _next_frame(self) -> tuple[AgentFrame, Stream, int, bytes] | None:
        if len(self._in) < _HEADER.size:
            return None
        magic, length, kind, stream, job = _HEADER.unpack_from(self._in)
        if magic != MAGIC or length > MAX_PAYLOAD:
            raise AgentError("the guest's agent sent bytes that are no frame")
        if kind not in _KINDS or stream not in _STREAMS:
            raise AgentError(f"the guest's agent sent an unknown frame (type {kind}, stream {stream})")
        if len(self._in) < _HEADER.size + length:
            return None
        payload = bytes(self._in[_HEADER.size : _HEADER.size + length])
        del self._in[: _HEADER.size + length]
        return AgentFrame(kind), Stream(stream), job, payload

    def _handle(self, kind: AgentFrame, stream: Stream, number: int, payload: bytes) -> list[Event]:
        if kind is AgentFrame.HELLO:
            if len(payload) == 24 and payload[16:] == self._nonce.to_bytes(8, "little"):
                return []
            # An agent says it at its start and when asked: both are over, so it has died and been started again.
            raise AgentError("the guest's agent was restarted")
        if kind is AgentFrame.GARBAGE:
            _check(len(payload) >= 4, kind)
            raise AgentError(f"the guest's agent did not understand us: {_text(payload[4:])}")
        if kind is AgentFrame.PONG:
            _check(len(payload) <= 64, kind)
            # Nobody takes events while users are served: without a bound they would fill the host's memory.
            if not self._pings:
                raise AgentError("the guest's agent answered a ping that was not sent")
            self._pings -= 1
            return [Pong(payload)]
        job = self._jobs.get(number)
        if job is None:
            raise AgentError(f"the guest's agent sent a {kind.name} frame for job {number}, which does not run")
        if kind is AgentFrame.DATA:
            return self._on_data(number, job, stream, payload)
        if kind is AgentFrame.CREDIT:
            _check(len(payload) == 4, kind)
            job.window_in += int.from_bytes(payload, "little")
            if job.window_in > WINDOW:
                raise AgentError("the guest's agent granted more than it had taken")
            self._push(number, job)
            return []
        if kind is AgentFrame.STARTED:
            _check(len(payload) == 4 and job.kind is _Kind.COMMAND and not job.started, kind)
            job.started = True
            return [Started(number, int.from_bytes(payload, "little"))]
        if kind is AgentFrame.FILE:
            _check(len(payload) == 24 and job.kind is _Kind.GET and not job.started, kind)
            job.started = True
            mode, _, size, modified = struct.unpack("<IIQQ", payload)
            return [FileInfo(number, mode & 0o7777, size, modified)]
        return [self._on_end(kind, number, job, payload)]

    def _on_data(self, number: int, job: _Job, stream: Stream, payload: bytes) -> list[Event]:
        _check(stream is not Stream.STDIN and job.kind is not _Kind.PUT and len(payload) > 0, AgentFrame.DATA)
        if len(payload) > job.window_out[stream]:
            raise AgentError("the guest's agent sent more than it was granted")
        job.window_out[stream] -= len(payload)
        return [Output(number, stream, payload)]

    def _on_end(self, kind: AgentFrame, number: int, job: _Job, payload: bytes) -> Exited | Failed:
        del self._jobs[number]
        if kind is AgentFrame.FAILED:
            _check(len(payload) >= 4, kind)
            return Failed(number, int.from_bytes(payload[:4], "little"), _text(payload[4:]))
        _check(len(payload) == 8, kind)
        how, value = struct.unpack("<II", payload)
        _check((how == 0 and value <= 255) or (how == 1 and 0 < value <= 64), kind)
        return Exited(number, value) if how == 0 else Exited(number, None, value)

    def _start(self, kind: _Kind, frame: HostFrame, payload: bytes) -> int:
        if not self._ready:
            raise AgentError("the guest's agent is not ready")
        number = self._next
        self._next = self._next % 0x7FFFFFFF + 1
        self._jobs[number] = _Job(kind)
        self._out += _frame(frame, number, payload)
        return number

    def _push(self, number: int, job: _Job) -> None:
        """Send of a job's pending input what its window takes."""
        while job.pending and job.window_in:
            data = job.pending.popleft()
            size = min(len(data), job.window_in, DATA_CHUNK)
            if size < len(data):
                job.pending.appendleft(data[size:])
            job.window_in -= size
            self._out += _frame(HostFrame.DATA, number, data[:size])
        if job.ending and not job.pending and not job.ended:
            job.ended = True
            self._out += _frame(HostFrame.END, number, b"")


def _frame(kind: HostFrame, job: int, payload: bytes | memoryview, stream: Stream = Stream.STDIN) -> bytes:
    return _HEADER.pack(MAGIC, len(payload), kind, stream, job) + payload


def _path(path: str) -> bytes:
    raw = path.encode("utf-8", "surrogateescape")
    if not raw.startswith(b"/") or b"\0" in raw or len(raw) >= _MAX_TEXT:
        raise AgentError(f"a path in the guest must be absolute and shorter than {_MAX_TEXT} bytes: {path[:80]!r}")
    return raw + b"\0"


def _text(raw: bytes) -> str:
    """Text from the guest, made safe to print."""
    return printable(raw)


def _u16(number: int) -> int:
    return max(0, min(number, 0xFFFF))


def _check(condition: bool, kind: AgentFrame) -> None:
    if not condition:
        raise AgentError(f"the guest's agent sent a malformed {kind.name} frame")
