# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest agent, run as a process of this machine."""

import errno
import hashlib
import os
import signal
import struct
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.guest.agent.agent_process import AgentProcess, Collected
from veil.guest.agent.protocol import MAGIC, MAX_PAYLOAD, WINDOW, AgentFrame, HostFrame, Output, Stream, Terminal
from veil.guest.errors import AgentError

MIB = 1 << 20
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_streams_and_status_are_separate(agent: AgentProcess) -> None:
    result = agent.run("sh", "-c", "cat; echo on stderr >&2; exit 7", stdin=b"on stdin\n")
    assert (result.stdout, result.stderr, result.exit.code) == (b"on stdin\n", b"on stderr\n", 7)


def test_environment_and_directory_are_as_asked(agent: AgentProcess, tmp_path: Path) -> None:
    result = agent.run("sh", "-c", "env; pwd", directory=str(tmp_path))
    assert set(result.stdout.split()) >= {b"LC_ALL=C", b"PATH=/usr/sbin:/usr/bin:/sbin:/bin", bytes(tmp_path)}
    assert b"HOME=" not in result.stdout


def test_death_by_signal_is_told(agent: AgentProcess) -> None:
    result = agent.run("sh", "-c", "kill -SEGV $$")
    assert result.exit.code is None
    assert result.exit.signal == signal.SIGSEGV
    assert result.exit.status == 128 + 11


def test_signals_reach_the_whole_session(agent: AgentProcess) -> None:
    job = agent.start("sh", "-c", "sleep 1000 & echo up; wait")
    agent.until(lambda: agent.jobs[job].stdout == b"up\n")
    agent.connection.signal(job, signal.SIGTERM)
    assert agent.finish(job).exit.signal == signal.SIGTERM


def test_signal_right_after_start(agent: AgentProcess) -> None:
    for _ in range(20):
        job = agent.start("sleep", "1000")
        agent.connection.signal(job, signal.SIGKILL)
        assert agent.finish(job).exit.signal == signal.SIGKILL


@pytest.mark.parametrize(("command", "number"), [("no-such-program", errno.ENOENT), ("/etc/passwd", errno.EACCES)])
def test_a_program_that_cannot_start(agent: AgentProcess, command: str, number: int) -> None:
    failure = agent.run(command).failure
    assert failure.errno == number
    assert command in failure.message


def test_a_directory_that_is_not_there(agent: AgentProcess) -> None:
    failure = agent.run("true", directory="/no/such/place").failure
    assert failure.errno == errno.ENOENT
    assert "/no/such/place" in failure.message


def test_background_children_do_not_hold_a_job(agent: AgentProcess) -> None:
    start = time.monotonic()
    result = agent.run("sh", "-c", "sleep 30 & echo done")
    assert result.stdout == b"done\n"
    assert time.monotonic() - start < 20


def test_hundred_megabytes_out(agent: AgentProcess) -> None:
    job = agent.start("sh", "-c", "head -c 104857600 /dev/zero | tr '\\0' x; echo end >&2")
    result = agent.finish(job, read_at_most=1 << 20)
    assert len(result.stdout) == 100 * MIB
    assert result.stdout.count(b"x") == 100 * MIB
    assert result.stderr == b"end\n"


def test_large_binary_through_both_ways(agent: AgentProcess) -> None:
    data = os.urandom(8 * MIB)
    result = agent.run("cat", stdin=data)
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(data).digest()


def test_slow_reader_stalls_only_its_own_job(agent: AgentProcess) -> None:
    slow = agent.start("cat", "/dev/zero")
    agent.stalled.add(slow)
    agent.until(lambda: len(agent.jobs[slow].stdout) == WINDOW)
    for _ in range(20):
        assert agent.run("echo", "quick").stdout == b"quick\n"
    assert len(agent.jobs[slow].stdout) == WINDOW
    agent.connection.signal(slow, signal.SIGKILL)
    agent.stalled.clear()
    agent.connection.acknowledge(_output(slow, WINDOW))
    assert agent.finish(slow).exit.signal == signal.SIGKILL


def test_output_before_exit_survives_a_stall(agent: AgentProcess) -> None:
    """The program is gone, its output waits in the pipe until the host grants more."""
    job = agent.start("sh", "-c", f"head -c {WINDOW + 5000} /dev/zero")
    agent.stalled.add(job)
    agent.until(lambda: len(agent.jobs[job].stdout) == WINDOW)
    time.sleep(0.1)
    agent.run("true")
    assert agent.jobs[job].end is None
    agent.connection.acknowledge(_output(job, WINDOW))
    assert len(agent.finish(job).stdout) == WINDOW + 5000


def _output(job: int, size: int) -> Output:
    return Output(job, Stream.STDOUT, bytes(size))


def test_a_program_that_never_reads_its_input(agent: AgentProcess) -> None:
    job = agent.start("sh", "-c", "exec <&-; sleep 0.2; echo ok")
    agent.connection.write(job, bytes(4 * MIB))
    agent.connection.end(job)
    assert agent.finish(job).stdout == b"ok\n"


def test_reader_that_reads_nothing_for_a_while(agent_path: Path) -> None:
    """Both directions full, small socket buffers: nothing is lost and nobody waits forever."""
    with AgentProcess(agent_path, buffer_size=4096) as agent:
        data = os.urandom(2 * MIB)
        job = agent.start("cat")
        agent.connection.write(job, data)
        agent.connection.end(job)
        for _ in range(30):
            agent.step(timeout=0, read_at_most=0)
        assert agent.finish(job, read_at_most=1000).stdout == data


def test_many_commands_at_once(agent: AgentProcess) -> None:
    jobs = {agent.start("sh", "-c", f"cat; echo {i} >&2; exit {i}"): i for i in range(100)}
    for job, i in jobs.items():
        agent.connection.write(job, b"%d" % i * 1000)
        agent.connection.end(job)
    for job, i in jobs.items():
        result = agent.finish(job)
        assert (result.stdout, result.stderr, result.exit.code) == (b"%d" % i * 1000, b"%d\n" % i, i)


def test_too_many_commands(agent: AgentProcess) -> None:
    jobs = [agent.start("cat") for _ in range(130)]
    refused = agent.finish(jobs[-1]).failure
    assert refused.errno == errno.EAGAIN
    for job in jobs[:128]:
        agent.connection.end(job)
    assert all(agent.finish(job).exit.code == 0 for job in jobs[:128])
    assert agent.run("echo", "free again").stdout == b"free again\n"


def test_no_descriptors_leak(agent: AgentProcess) -> None:
    place = Path(f"/proc/{agent.process.pid}/fd")
    agent.run("true")
    before = len(list(place.iterdir()))
    for _ in range(50):
        agent.run("true")
        agent.run("no-such-program")
        agent.get("/etc/passwd")
        agent.get("/no/such/file")
    assert len(list(place.iterdir())) == before
    listing = agent.run("sh", "-c", "ls /proc/self/fd").stdout.split()
    assert set(listing) <= {b"0", b"1", b"2", b"3"}


def test_terminal(agent: AgentProcess) -> None:
    job = agent.start("sh", "-c", "tty; stty size; read line; stty size; cat", terminal=Terminal(33, 101))
    agent.until(lambda: b"33 101" in agent.jobs[job].stdout)
    agent.connection.resize(job, Terminal(40, 90))
    agent.connection.write(job, b"go\n")
    agent.until(lambda: b"40 90" in agent.jobs[job].stdout)
    agent.connection.write(job, b"typed\n")
    agent.connection.end(job)
    result = agent.finish(job)
    assert result.exit.code == 0
    assert b"/dev/pts/" in result.stdout
    assert result.stdout.count(b"typed") == 2
    assert not result.stderr


def test_terminal_interrupt(agent: AgentProcess) -> None:
    job = agent.start("sh", "-c", "echo up; sleep 1000", terminal=Terminal())
    agent.until(lambda: b"up" in agent.jobs[job].stdout)

    def interrupted() -> bool:
        # The shell may lose a key that comes while it starts `sleep`; a user would press it again.
        agent.connection.write(job, b"\x03")
        time.sleep(0.05)
        return agent.jobs[job].end is not None

    agent.until(interrupted)
    assert agent.finish(job).exit.status == 130


def test_terminal_output_is_complete(agent: AgentProcess) -> None:
    job = agent.start("sh", "-c", "seq 20000", terminal=Terminal())
    assert agent.finish(job).stdout == b"".join(b"%d\r\n" % i for i in range(1, 20001))


def test_put_and_get(agent: AgentProcess, tmp_path: Path) -> None:
    data = os.urandom(3 * MIB + 17)
    path = tmp_path / "a/b/file"
    assert agent.put(path, data, 0o751).exit.code == 0
    assert path.read_bytes() == data
    assert path.stat().st_mode & 0o7777 == 0o751
    got = agent.get(path)
    assert got.stdout == data
    assert got.info is not None
    assert (got.info.mode, got.info.size) == (0o751, len(data))
    assert got.info.modified_ns == path.stat().st_mtime_ns
    assert [item.name for item in path.parent.iterdir()] == ["file"]


def test_put_through_a_link(agent: AgentProcess, tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    agent.put(tmp_path / "link", b"new")
    assert (tmp_path / "real").read_bytes() == b"new"
    assert (tmp_path / "link").is_symlink()


def test_empty_file(agent: AgentProcess, tmp_path: Path) -> None:
    agent.put(tmp_path / "empty", b"")
    assert agent.get(tmp_path / "empty").stdout == b""
    assert (tmp_path / "empty").stat().st_size == 0


def test_files_without_a_size(agent: AgentProcess) -> None:
    assert agent.get("/proc/self/status").stdout.startswith(b"Name:\tagent")


@pytest.mark.parametrize(("path", "number"), [("/tmp", errno.EISDIR), ("/dev/null", errno.EINVAL),
                                              ("/no/such", errno.ENOENT)])  # fmt: skip
def test_get_refusals(agent: AgentProcess, path: str, number: int) -> None:
    assert agent.get(path).failure.errno == number


def test_put_refusals(agent: AgentProcess, tmp_path: Path) -> None:
    assert agent.put(tmp_path, b"x").failure.errno == errno.EISDIR
    assert agent.put(Path("/dev/null"), b"x").failure.errno == errno.EINVAL
    assert agent.put(Path("/proc/nope"), bytes(MIB)).failure.errno in (errno.ENOENT, errno.EACCES)


def test_cancelled_put_leaves_nothing(agent: AgentProcess, tmp_path: Path) -> None:
    job = agent.connection.put(str(tmp_path / "file"))
    agent.jobs[job] = Collected()
    agent.connection.write(job, bytes(1000))
    agent.connection.signal(job, signal.SIGTERM)
    assert agent.finish(job).failure.errno == errno.ECANCELED
    assert not list(tmp_path.iterdir())


def test_new_session_ends_the_old_one(agent: AgentProcess, tmp_path: Path) -> None:
    job = agent.start("sh", "-c", "echo up; exec cat /dev/zero")
    agent.stalled.add(job)
    agent.until(lambda: agent.jobs[job].pid is not None)
    pid = agent.jobs[job].pid
    put = agent.connection.put(str(tmp_path / "half"))
    agent.connection.write(put, b"half")
    agent.step()
    agent.open(nonce=2)
    assert agent.run("echo", "new").stdout == b"new\n"
    assert not list(tmp_path.iterdir())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        agent.run("true")


def test_garbage_is_told_and_skipped(agent: AgentProcess) -> None:
    agent.send(b"\xff" * 1000 + b"VEIL" + b"\xee" * 40)
    agent.connection.ping(b"still in step")
    with pytest.raises(AgentError, match="bytes that are no frame"):
        agent.until(lambda: False)
    agent.open(nonce=3)
    assert agent.run("echo", "alive").stdout == b"alive\n"


@few
@given(st.binary(max_size=200), st.lists(st.sampled_from(list(HostFrame)), max_size=4), st.binary(max_size=64))
def test_no_garbage_kills_the_agent(agent: AgentProcess, junk: bytes, kinds: list[HostFrame], payload: bytes) -> None:
    for kind in kinds:
        if kind is not HostFrame.HELLO:
            agent.send(struct.pack("<IIHHI", MAGIC, len(payload), kind, 0, len(junk)) + payload)
    agent.send(junk)
    # A header in the junk may have asked for a payload: enough bytes to satisfy it, and none that is a frame.
    agent.send(bytes(MAX_PAYLOAD))
    for nonce in range(10, 12):
        agent.open(nonce)
    assert agent.run("echo", "alive").stdout == b"alive\n"


@few
@given(st.lists(st.tuples(st.binary(max_size=5000), st.binary(max_size=5000), st.integers(0, 255)), max_size=6))
def test_any_payload_comes_back(agent: AgentProcess, work: list[tuple[bytes, bytes, int]]) -> None:
    jobs = []
    for out, err, code in work:
        script = f"head -c {len(out)}; cat >&2; exit {code}"
        # dd reads exactly: head may read ahead of what it prints
        script = f"dd bs=1 count={len(out)} 2>/dev/null; cat >&2; exit {code}"
        job = agent.start("sh", "-c", script)
        agent.connection.write(job, out + err)
        agent.connection.end(job)
        jobs.append(job)
    for job, (out, err, code) in zip(jobs, work, strict=True):
        result = agent.finish(job)
        assert (result.stdout, result.stderr, result.exit.code) == (out, err, code)


def test_frame_types_agree_with_the_agent(agent_path: Path) -> None:
    """wire.h numbers its frames by order; ours carry numbers."""
    from veil.guest.agent.build import agent_sources

    text = agent_sources()["wire.h"].decode()
    body = text[text.index("enum frame_type") :].split("}")[0]
    names = [line.strip().split(" ")[0].rstrip(",") for line in body.splitlines() if "HOST_" in line]
    ours = [f"FROM_HOST_{kind.name}" for kind in HostFrame] + [f"TO_HOST_{kind.name}" for kind in AgentFrame]
    assert names == ours
    assert list(HostFrame) == list(range(1, 11))
    assert list(AgentFrame) == list(range(64, 73))
