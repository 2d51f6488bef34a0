# SPDX-License-Identifier: GPL-2.0-or-later
"""Compilers and what they read: programs for the guest are measured, so the same inputs must give the same bytes.

A compiler runs with an environment of ours. Of the user's only the search path gets through, so his name, home,
locale, time zone, umask and flags leave no trace. What stays are the compiler, linker and libraries themselves: each
file that a build reads outside its own folder is written down with its checksum, and a program whose inputs have
changed since is built again. So the program at hand is always the one that the compiler at hand makes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from veil.cache import Cache
from veil.private_files import UMASK, write_new

__all__ = ["at_hand", "built", "compiler_version", "find_program", "programs_of", "run_tool"]

_INPUTS = "inputs.json"
_KEPT = ("PATH", "TMPDIR")
_FIXED = {
    "LC_ALL": "C", "TZ": "UTC", "HOME": "/nonexistent", "USER": "veil", "LOGNAME": "veil", "SOURCE_DATE_EPOCH": "0",
    "KBUILD_BUILD_USER": "veil", "KBUILD_BUILD_HOST": "veil", "KBUILD_BUILD_VERSION": "1",
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan 1 00:00:00 UTC 1970", "CCACHE_DISABLE": "1",
}  # fmt: skip
#: what a compiler starts
_PARTS = ("cc1", "collect2", "as", "ld")


def run_tool(
    command: Sequence[str],
    directory: Path | None = None,
    *,
    scratch: Path | None = None,
    libraries: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a compiler or the like in `directory`, with the fixed environment. Its temporary files go to `scratch`, or
    else there too: one place can be full, and is cleared. Raises OSError if it cannot be started."""
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | _FIXED
    if place := scratch or directory:
        environment["TMPDIR"] = str(place)
    paths = [str(libraries)] if libraries is not None else []
    paths += [os.environ["LD_LIBRARY_PATH"]] if os.environ.get("LD_LIBRARY_PATH") else []
    if paths:
        environment["LD_LIBRARY_PATH"] = ":".join(paths)
    return subprocess.run(
        [*command], cwd=directory, env=environment, capture_output=True, text=True, errors="replace", check=False,
        stdin=subprocess.DEVNULL, umask=UMASK,
    )  # fmt: skip


def find_program(name: str) -> str | None:
    """Where a command is, with links followed; None if it is nowhere."""
    found = shutil.which(name)
    return os.path.realpath(found) if found is not None else None


def programs_of(command: Sequence[str]) -> list[Path]:
    """The compiler's own files: the command, and the programs that it starts. Raises OSError."""
    names = [command[0]]
    for part in _PARTS:
        names += run_tool([*command, f"-print-prog-name={part}"]).stdout.split()[:1]
    found = (find_program(name) for name in names)
    return [Path(path) for path in dict.fromkeys(found) if path is not None]


def compiler_version(command: str) -> str:
    """Compiler and linker in words, as "gcc (Debian 12.2.0-14+deb12u1) 12.2.0, GNU ld (...) 2.40"."""
    words = shlex.split(command) or ["cc"]
    lines = []
    try:
        for arguments in ([*words, "--version"], [*words, "-Wl,--version"]):
            lines += run_tool(arguments).stdout.splitlines()[:1]
    except OSError:
        return "none"
    return ", ".join(lines)


def built(cache: Cache, kind: str, key: str, build: Callable[[Path], Iterable[Path]]) -> Path:
    """A cache entry whose `build` returns the files it read; made again if one of these has changed."""
    found = cache.lookup(kind, key)
    if found is not None and not _unchanged(found / _INPUTS):
        cache.remove(kind, key)

    def make(directory: Path) -> None:
        inputs = sorted(set(build(directory)))
        write_new(directory / _INPUTS, json.dumps([_describe(path) for path in inputs], indent=0))

    return cache.entry(kind, key, make)


def at_hand(cache: Cache, kind: str, key: str) -> Path | None:
    """The same, if it need not be built."""
    found = cache.lookup(kind, key)
    return found if found is not None and _unchanged(found / _INPUTS) else None


def _describe(path: Path) -> tuple[str, int, int, str]:
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()


def _unchanged(inputs: Path) -> bool:
    try:
        for name, size, mtime, digest in json.loads(inputs.read_text()):
            status = os.stat(name)
            # Its times may be others after a copy or a reinstallation; then the content decides.
            if status.st_size != size or (status.st_mtime_ns != mtime and _describe(Path(name))[3] != digest):
                return False
    except (OSError, ValueError, TypeError):
        return False
    return True
