# SPDX-License-Identifier: GPL-2.0-or-later
"""All that the commands print. No other module here writes to stdout or stderr.

Two things are seen to in this one place. What is printed is one line of visible characters, whoever its words are from
(`veil.formats.printable`); only `raw` is not, which joins a guest's streams to ours because the user asked for that.
And a stdout that takes nothing (a full disk, a pipe whose reader has gone) ends the command with a status of its own,
which no verdict has.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import json
import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO, cast

import click

from veil.cli.exit_statuses import EXIT_FAILURE, EXIT_PIPE
from veil.formats.printable import one_line, printable

__all__ = [
    "Console",
    "Mark",
    "OutputError",
    "checked_stdout",
    "emit_json",
    "finish",
    "give_up",
    "keep_descriptors",
    "raw",
    "say",
    "say_all",
    "tell",
]

_CONSOLE_LINE = 1000
#: Nobody reads more, and somebody else may have made it that long.
_MAX_LINE = 10_000


class Mark(enum.Enum):
    """What a line begins with, in colour on a terminal."""

    OK = ("ok  ", {"fg": "green"})
    NOTE = ("note", {"fg": "yellow"})
    FAIL = ("FAIL", {"fg": "red", "bold": True})


class OutputError(Exception):
    """Stdout does not take what the command has to say. Not an OSError, so that nobody takes it for another one."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(f"cannot write the output: {cause.strerror or cause}")
        self.status = EXIT_PIPE if cause.errno == errno.EPIPE else EXIT_FAILURE


def say(text: str = "", *, mark: Mark | None = None) -> None:
    """One line on stdout. Raises OutputError."""
    line = one_line(text, _MAX_LINE)
    if mark is not None:
        word, style = mark.value
        line = f"{click.style(word, **style) if sys.stdout.isatty() else word}  {line}"
    with _failing():
        _put(sys.stdout, line)
        sys.stdout.flush()


def say_all(lines: Iterable[str]) -> None:
    """Many lines on stdout, which go together. Raises OutputError."""
    with _failing():
        for text in lines:
            _put(sys.stdout, one_line(text, _MAX_LINE))
        sys.stdout.flush()


def tell(text: str) -> None:
    """One line on stderr: progress, findings, errors. That nobody can read it changes nothing."""
    try:
        _put(sys.stderr, one_line(text, _MAX_LINE))
        sys.stderr.flush()
    except (OSError, ValueError):
        _give_up(sys.stderr)


def emit_json(value: Any, *, as_line: bool = False) -> None:
    """One JSON document on stdout, in ASCII. Raises OutputError."""
    text = json.dumps(value) if as_line else json.dumps(value, indent=2, sort_keys=True)
    with _failing():
        # JSON escapes all control characters but one.
        _put(sys.stdout, text.replace("\x7f", "\\u007f"))
        sys.stdout.flush()


def raw(descriptor: int, data: bytes) -> None:
    """A guest's output as it is, on our stdout (1) or stderr (2). Raises OutputError."""
    view = memoryview(data)
    with _failing():
        while view:
            try:
                view = view[os.write(descriptor, view) :]
            except BlockingIOError:
                # Another process that shares the terminal or pipe with us made it so.
                select.select((), (descriptor,), ())


class Console:
    """A guest's console in lines of visible characters: all that it could do with others is to the user's terminal."""

    def __init__(self, write: Callable[[str], None]) -> None:
        """`write` is `say` or `tell`."""
        self._write = write
        self._line = b""

    def feed(self, data: bytes) -> None:
        """What the guest printed."""
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._put(line)
        if len(self._line) > _CONSOLE_LINE:
            self.close()

    def close(self) -> None:
        """Show a line that has no end."""
        if self._line:
            self._put(self._line)
            self._line = b""

    def _put(self, line: bytes) -> None:
        self._write(printable(line.rstrip(b"\r").expandtabs(), None))


class _Checked:
    """A stream whose writes fail as ours do."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _failing():
            return self._stream.write(text)

    def flush(self) -> None:
        with _failing():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def checked_stdout() -> Iterator[None]:
    """What others print in it, as click does its help, raises OutputError too where stdout does not take it."""
    stream = sys.stdout
    sys.stdout = cast(TextIO, _Checked(stream))
    try:
        yield
    finally:
        sys.stdout = stream


def keep_descriptors() -> None:
    """Occupy those of stdin, stdout and stderr that are closed: no file of ours must get their numbers.

    Else a guest's output would be written into whatever was opened next, a snapshot for example. Writing to what takes
    the place of stdout fails, as writing to a closed one does.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # gets the lowest number
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "w", closefd=False))


def finish() -> None:
    """Nothing more comes, or something failed that may have been stdout. Raises OutputError."""
    with _failing():
        sys.stdout.flush()


def give_up() -> None:
    """Stdout takes nothing: no more is tried."""
    _give_up(sys.stdout)


def _give_up(stream: TextIO) -> None:
    """What is still held for a stream must not fail once more, when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(error) from error


def _put(stream: TextIO, line: str) -> None:
    encoding = stream.encoding or "utf-8"
    stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
