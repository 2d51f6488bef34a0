# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's gdb, out of its package: it need not be installed."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from veil.cache import Cache
from veil.guest.initramfs.debian_programs import debian_programs

__all__ = ["Gdb"]

_PROGRAM = "usr/bin/gdb"
_MARK = "@@@"


@functools.cache
def _unpacked() -> tuple[tempfile.TemporaryDirectory[str], list[str]]:
    """A folder with gdb and its libraries, and how it is started from there."""
    folder = tempfile.TemporaryDirectory(prefix="gdb-")
    root = Path(folder.name)
    loader, libraries = "", set[str]()
    for name, node in debian_programs(Cache(), ["gdb-minimal"], [_PROGRAM]).items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(node.data)
        place.chmod(0o700)
        libraries.add(str(place.parent))
        if place.name.startswith("ld-linux"):
            loader = str(place)
    return folder, [loader, "--library-path", ":".join(sorted(libraries)), str(root / _PROGRAM)]


class Gdb:
    """A run of gdb with these commands, one after the other; one that fails does not end it."""

    def __init__(self, commands: Sequence[str], *, limit: float = 60.0) -> None:
        self._limit = limit
        given = ["set pagination off", "set confirm off", "set remotetimeout 60", "set architecture i386:x86-64"]
        arguments = [item for command in given for item in ("-ex", command)]
        for command in commands:
            arguments += ["-ex", f"echo \\n{_MARK}\\n", "-ex", command]
        self._process = subprocess.Popen(
            [*_unpacked()[1], "-q", "-nx", "-batch", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def said(self) -> list[str]:
        """What gdb said to each command, when it has ended."""
        try:
            output, _ = self._process.communicate(timeout=self._limit)
        finally:
            self._process.kill()
            self._process.wait()
        return [part.strip() for part in output.split(f"\n{_MARK}\n")[1:]]
