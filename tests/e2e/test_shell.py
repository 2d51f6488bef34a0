# SPDX-License-Identifier: GPL-2.0-or-later
"""`veil shell` as a user meets it: on a terminal, and with a pipe for its input."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

_VEIL = [sys.executable, "-c", "from veil.cli import main; main()"]
_PATIENCE = 60.0

pytestmark = pytest.mark.usefixtures("kept")


def _piped(arguments: list[str], commands: bytes | None) -> subprocess.CompletedProcess[bytes]:
    source: dict[str, Any] = {"stdin": subprocess.DEVNULL} if commands is None else {"input": commands}
    return subprocess.run([*_VEIL, *arguments], capture_output=True, timeout=_PATIENCE, check=False, **source)


def test_piped_commands_run_and_the_status_is_the_shells() -> None:
    done = _piped(["shell"], b"echo out; echo err >&2; cd /tmp\npwd; exit 5\necho never\n")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n/tmp\n", b"err\n", 5)


def test_the_last_commands_status_is_the_shells() -> None:
    done = _piped(["shell"], b"true\nfalse\n")
    assert (done.stdout, done.returncode) == (b"", 1)


def test_input_at_its_end_ends_the_shell() -> None:
    done = _piped(["shell"], None)
    assert (done.stdout, done.stderr, done.returncode) == (b"", b"", 0)


class _Terminal:
    """A terminal of which we are the screen and the keyboard; `veil` runs on it."""

    def __init__(self, *arguments: str, before: bytes = b"") -> None:
        self.master, self.slave = pty.openpty()
        self.resize(33, 101)
        self.mode = termios.tcgetattr(self.slave)
        self.seen = b""
        if before:
            self.type(before)
        self.process = subprocess.Popen(
            [*_VEIL, *arguments], stdin=self.slave, stdout=self.slave, stderr=self.slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def expect(self, words: bytes) -> None:
        """Wait for these words; what comes before them is forgotten."""
        self._read_until(lambda: words in self.seen)
        assert words in self.seen, self.seen
        self.seen = self.seen[self.seen.index(words) + len(words) :]

    def status(self) -> int:
        """Wait for the end."""
        self._read_until(lambda: self.process.poll() is not None)
        return self.process.wait(20)

    def wait_until_quiet(self) -> None:
        """Until the terminal is no longer in line mode: veil has begun."""
        end = time.monotonic() + _PATIENCE
        while termios.tcgetattr(self.slave)[3] & termios.ICANON and time.monotonic() < end:
            time.sleep(0.01)

    def _read_until(self, done: Any) -> None:
        end = time.monotonic() + _PATIENCE
        while not done() and time.monotonic() < end:
            if select.select([self.master], [], [], 0.05)[0]:
                self.seen += os.read(self.master, 4096)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for descriptor in (self.master, self.slave):
            with suppress(OSError):
                os.close(descriptor)


@pytest.fixture
def on_terminal() -> Iterator[Any]:
    made: list[_Terminal] = []

    def start(*arguments: str, before: bytes = b"") -> _Terminal:
        made.append(_Terminal(*arguments, before=before))
        return made[-1]

    yield start
    for terminal in made:
        terminal.close()


def test_what_is_typed_before_the_shell_is_there_reaches_it(on_terminal: Any) -> None:
    terminal = on_terminal("shell", before=b"echo fir''st\r")
    terminal.wait_until_quiet()
    terminal.type(b"echo sec''ond\r")
    terminal.type(b"exit 7\r")
    terminal.expect(b"\r\nfirst\r\n")
    terminal.expect(b"\r\nsecond\r\n")
    assert terminal.status() == 7
    assert termios.tcgetattr(terminal.slave) == terminal.mode


def test_an_end_typed_before_the_shell_is_there_ends_it(on_terminal: Any) -> None:
    terminal = on_terminal("shell")
    terminal.wait_until_quiet()
    terminal.type(b"\x04")
    assert terminal.status() == 0
    assert termios.tcgetattr(terminal.slave) == terminal.mode


def test_keys_and_window_are_the_guests(on_terminal: Any) -> None:
    terminal = on_terminal("shell")
    terminal.expect(b"veil:~# ")
    terminal.type(b"stty size\r")
    terminal.expect(b"\r\n33 101\r\n")
    terminal.resize(20, 70)
    terminal.type(b"sleep 0.2; stty size\r")
    terminal.expect(b"\r\n20 70\r\n")
    terminal.type(b"sleep 100\r")
    terminal.expect(b"sleep 100\r\n")
    time.sleep(0.3)
    terminal.type(b"\x03")
    terminal.expect(b"veil:~# ")
    terminal.type(b"echo $?; exit 3\r")
    terminal.expect(b"\r\n130\r\n")
    assert terminal.status() == 3
    assert termios.tcgetattr(terminal.slave) == terminal.mode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_restores_the_terminal(on_terminal: Any, number: signal.Signals) -> None:
    terminal = on_terminal("shell")
    terminal.expect(b"veil:~# ")
    terminal.process.send_signal(number)
    assert terminal.status() == 128 + number
    assert termios.tcgetattr(terminal.slave) == terminal.mode


def test_ctrl_c_while_it_starts_restores_the_terminal(on_terminal: Any) -> None:
    terminal = on_terminal("shell", "--fresh")
    terminal.expect(b"booting the CVM")
    terminal.type(b"\x03")
    assert terminal.status() == 130
    assert b"veil: interrupted" in terminal.seen
    assert b"Traceback" not in terminal.seen
    assert termios.tcgetattr(terminal.slave) == terminal.mode


def test_a_guest_that_ends_restores_the_terminal(on_terminal: Any) -> None:
    terminal = on_terminal("shell")
    terminal.expect(b"veil:~# ")
    terminal.type(b"poweroff -f\r")
    assert terminal.status() == 125
    assert b"veil: the guest switched its machine off" in terminal.seen
    assert termios.tcgetattr(terminal.slave) == terminal.mode


def test_options_before_the_command_are_ours_and_those_after_it_its_own() -> None:
    wrong = _piped(["run", "--memoy", "4G", "--", "true"], None)
    assert (wrong.returncode, wrong.stdout) == (2, b"")
    assert b"--memoy" in wrong.stderr
    right = _piped(["run", "echo", "--memoy", "-x", "--", "--fresh"], None)
    assert (right.returncode, right.stdout) == (0, b"--memoy -x -- --fresh\n")


@pytest.mark.parametrize(("command", "status"), [("no-such-command", 127), ("/no/such", 127), ("/etc/passwd", 126)])
def test_a_command_that_cannot_start_has_the_status_of_shells(command: str, status: int) -> None:
    done = _piped(["run", "--", command], None)
    assert done.returncode == status
    assert done.stderr.startswith(f"veil: {command}: ".encode())
    assert done.stderr.count(b"\n") == 1
