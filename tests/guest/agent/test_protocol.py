# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's end of the agent protocol against guests that lie."""

import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from veil.guest.agent.protocol import (
    MAGIC,
    MAX_PAYLOAD,
    WINDOW,
    AgentConnection,
    AgentFrame,
    Exited,
    Failed,
    HostFrame,
    Output,
    Pong,
    Ready,
    Started,
    Stream,
    Terminal,
)
from veil.guest.errors import AgentError


def frame(kind: int, job: int = 0, payload: bytes = b"", stream: int = 0) -> bytes:
    return struct.pack("<IIHHI", MAGIC, len(payload), kind, stream, job) + payload


def hello(nonce: int, version: int = 1) -> bytes:
    return frame(AgentFrame.HELLO, 0, struct.pack("<IIIIQ", version, MAX_PAYLOAD, WINDOW, 128, nonce))


def frames(data: bytes) -> list[tuple[HostFrame, int, bytes]]:
    found = []
    while data:
        magic, length, kind, _, job = struct.unpack_from("<IIHHI", data)
        assert magic == MAGIC
        assert length <= MAX_PAYLOAD
        assert len(data) >= 16 + length
        found.append((HostFrame(kind), job, data[16 : 16 + length]))
        data = data[16 + length :]
    return found


@pytest.fixture
def connection() -> AgentConnection:
    return opened()


def opened() -> AgentConnection:
    connection = AgentConnection()
    connection.hello(42)
    assert connection.feed(hello(42)) == [Ready(128)]
    connection.take()
    return connection


def start(connection: AgentConnection) -> int:
    return connection.run(["true"], environment={})


@given(st.binary(max_size=300), st.integers(1, 50))
def test_everything_before_the_answer_is_skipped(junk: bytes, chunk: int) -> None:
    connection = AgentConnection()
    connection.hello(42)
    connection.ping()
    stream = junk + hello(41) + junk + frame(AgentFrame.DATA, 3, junk) + hello(42) + frame(AgentFrame.PONG)
    events = []
    for at in range(0, len(stream), chunk):
        events += connection.feed(stream[at : at + chunk])
    assert events[0] == Ready(128)
    assert len(events) == 2


def test_an_agent_that_comes_up_late_is_greeted_again() -> None:
    connection = AgentConnection()
    connection.hello(42)
    first = connection.take()
    assert connection.feed(hello(0)) == []
    assert connection.take() == first
    assert connection.feed(hello(42) + hello(42)) == [Ready(128)]


def test_a_restarted_agent_is_noticed(connection: AgentConnection) -> None:
    with pytest.raises(AgentError, match="restarted"):
        connection.feed(hello(0))


def test_wrong_version() -> None:
    connection = AgentConnection()
    connection.hello(42)
    with pytest.raises(AgentError, match="version 2"):
        connection.feed(hello(42, 2))


def test_a_command_and_its_events(connection: AgentConnection) -> None:
    job = connection.run(["a", "b c"], environment={"X": "1"}, directory="/d", terminal=Terminal(3, 4))
    assert frames(connection.take()) == [
        (HostFrame.EXEC, job, struct.pack("<IHHII", 1, 3, 4, 2, 1) + b"/d\0a\0b c\0X=1\0")
    ]
    stream = frame(AgentFrame.STARTED, job, struct.pack("<I", 9)) + frame(AgentFrame.DATA, job, b"x", 1)
    stream += frame(AgentFrame.EXIT, job, struct.pack("<II", 1, 9))
    assert connection.feed(stream) == [Started(job, 9), Output(job, Stream.STDOUT, b"x"), Exited(job, None, 9)]


LIES = {
    "no frame": b"\0" * 16,
    "unknown type": frame(99, 1),
    "a host's type": frame(HostFrame.EXEC, 1),
    "unknown stream": frame(AgentFrame.DATA, 1, b"x", 3),
    "data on stdin": frame(AgentFrame.DATA, 1, b"x", 0),
    "empty data": frame(AgentFrame.DATA, 1, b"", 1),
    "huge": struct.pack("<IIHHI", MAGIC, MAX_PAYLOAD + 1, AgentFrame.DATA, 1, 1),
    "another job": frame(AgentFrame.DATA, 7, b"x", 1),
    "too much": frame(AgentFrame.DATA, 1, bytes(MAX_PAYLOAD), 1) + frame(AgentFrame.DATA, 1, b"x", 1),
    "credit": frame(AgentFrame.CREDIT, 1, b"\1\0\0\0"),
    "short credit": frame(AgentFrame.CREDIT, 1, b"\1"),
    "exit twice": frame(AgentFrame.EXIT, 1, bytes(8)) * 2,
    "exit status": frame(AgentFrame.EXIT, 1, struct.pack("<II", 0, 256)),
    "exit signal": frame(AgentFrame.EXIT, 1, struct.pack("<II", 1, 65)),
    "exit kind": frame(AgentFrame.EXIT, 1, struct.pack("<II", 2, 0)),
    "started twice": frame(AgentFrame.STARTED, 1, bytes(4)) * 2,
    "file of a command": frame(AgentFrame.FILE, 1, bytes(24)),
    "failed": frame(AgentFrame.FAILED, 1, b"x"),
    "garbage": frame(AgentFrame.GARBAGE, 0, b""),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_end_the_connection(connection: AgentConnection, name: str) -> None:
    assert start(connection) == 1
    # The bad frame may come behind a good one, which is delivered first.
    with pytest.raises(AgentError):
        _ = connection.feed(LIES[name]) and connection.feed(b"")
    with pytest.raises(AgentError):
        connection.feed(b"")


@settings(max_examples=examples(100))
@given(st.lists(st.binary(max_size=60) | st.builds(
    frame, st.integers(60, 76), st.integers(0, 3), st.binary(max_size=40), st.integers(0, 3))))  # fmt: skip
def test_nothing_but_agent_errors(pieces: list[bytes]) -> None:
    connection = opened()
    start(connection)
    connection.get("/x")
    connection.put("/y")
    with contextlib.suppress(AgentError):
        for piece in pieces:
            connection.feed(piece)


def test_messages_are_safe_to_print(connection: AgentConnection) -> None:
    job = start(connection)
    (event,) = connection.feed(frame(AgentFrame.FAILED, job, b"\2\0\0\0\x1b[2Jx\xff\n" + b"y" * 9000))
    assert isinstance(event, Failed)
    assert event.errno == 2
    assert event.message.startswith("\\x1b[2Jx\\xff\\ny")
    assert event.message.isprintable()
    assert len(event.message) <= 4096


def test_input_keeps_to_the_window(connection: AgentConnection) -> None:
    job = start(connection)
    data = bytes(range(256)) * 4096
    connection.write(job, data)
    connection.end(job)
    sent = b"".join(payload for kind, _, payload in frames(connection.take()) if kind is HostFrame.DATA)
    assert sent == data[:WINDOW]
    assert connection.unsent(job) == len(data) - WINDOW
    while connection.unsent(job):
        connection.feed(frame(AgentFrame.CREDIT, job, struct.pack("<I", 100_000)))
        new = frames(connection.take())
        part = b"".join(payload for kind, _, payload in new if kind is HostFrame.DATA)
        assert len(part) <= 100_000
        sent += part
    assert sent == data
    assert new[-1][0] is HostFrame.END


def test_grants_follow_acknowledgements(connection: AgentConnection) -> None:
    job = start(connection)
    connection.take()
    events = connection.feed(frame(AgentFrame.DATA, job, bytes(WINDOW // 2), 1))
    assert connection.take() == b""
    for event in events:
        assert isinstance(event, Output)
        connection.acknowledge(event)
    assert frames(connection.take()) == [(HostFrame.CREDIT, job, struct.pack("<I", WINDOW // 2))]


def test_what_is_asked_wrongly(connection: AgentConnection) -> None:
    with pytest.raises(AgentError, match="NUL"):
        connection.run(["a\0b"], environment={})
    with pytest.raises(AgentError, match="too long"):
        connection.run(["x" * MAX_PAYLOAD], environment={})
    with pytest.raises(AgentError, match="absolute"):
        connection.get("relative")
    with pytest.raises(AgentError, match="absolute"):
        connection.put("/a\0b")
    with pytest.raises(ValueError, match="program"):
        connection.run([], environment={})
    with pytest.raises(AgentError, match="not ready"):
        AgentConnection().get("/x")


def test_jobs_that_are_over_take_no_frames(connection: AgentConnection) -> None:
    job = start(connection)
    (end,) = connection.feed(frame(AgentFrame.EXIT, job, bytes(8)))
    assert isinstance(end, Exited)
    assert end.status == 0
    connection.take()
    connection.write(job, b"x")
    connection.end(job)
    connection.signal(job, 15)
    connection.resize(job, Terminal())
    connection.acknowledge(Output(job, Stream.STDOUT, b"x"))
    assert connection.take() == b""


def test_take_in_pieces(connection: AgentConnection) -> None:
    connection.ping(b"abc")
    assert b"".join(iter(lambda: connection.take(5), b"")) == frame(HostFrame.PING, 0, b"abc")


def test_answers_that_nobody_asked_for(connection: AgentConnection) -> None:
    """They would wait here for whoever runs the next command; while users are served nobody does."""
    connection.ping(b"abc")
    pong = frame(AgentFrame.PONG, 0, b"abc")
    assert connection.feed(pong) == [Pong(b"abc")]
    with pytest.raises(AgentError, match="not sent"):
        connection.feed(pong)
