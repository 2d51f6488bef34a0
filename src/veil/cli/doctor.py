# SPDX-License-Identifier: GPL-2.0-or-later
"""veil doctor"""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from veil.cli.output import emit_json, say, tell
from veil.disk import refuse_full_disk, tool_environment
from veil.errors import describe

__all__ = ["doctor"]

_MEMORY_WANTED = 1 << 30
_DISK_NEEDED, _DISK_WANTED = 600 << 20, 2 << 30
_LIBC_TEST = b"int main(void) { return 0; }"

# What may be still to make, in words.
_MADE = {
    "engine": "the CPU engine",
    "agent": "the guest's agent",
    "driver": "the driver",
    "packages": "the guest's kernel and programs",
}
# (command, Debian package, what for, for making which of these it is necessary)
_TOOLS = (
    ("cmake", "cmake", "configures the CPU engine", {"engine"}),
    ("ninja", "ninja-build", "builds the CPU engine", {"engine"}),
    ("gcc", "gcc", "builds the driver", {"driver"}),
    ("make", "make", "builds the driver, and runs the targets of the Makefile", {"driver"}),
    ("strip", "binutils", "makes the driver small", {"driver"}),
    ("apt-get", "apt", "fetches the guest's kernel", {"packages"}),
    ("dpkg-deb", "dpkg", "unpacks the guest's kernel", {"packages"}),
    ("as", "binutils", "assembles the tests' machine code", set[str]()),
    ("qemu-system-x86_64", "qemu-system-x86", "is what `make bench` compares with", set[str]()),
)


@dataclass(frozen=True)
class _Check:
    name: str
    good: bool
    needed: bool
    words: str


def _checks() -> Iterator[_Check]:
    machine = f"{platform.system()} {platform.machine()}"
    yield _Check("computer", machine == "Linux x86_64", True, f"{machine}; Veil runs on x86-64 Linux")
    version = ".".join(map(str, sys.version_info[:3]))
    yield _Check("python", sys.version_info >= (3, 11), True, f"{version}; 3.11 or later is needed")
    missing = _still_to_make()
    yield from _compiler_checks(missing)
    for command, package, purpose, makes in _TOOLS:
        path = _find(command)
        words = str(path) if path else f"not found: it {purpose} (Debian: apt install {package})"
        yield _check(command, path is not None, words, makes, missing)
    free = _free_memory() >> 20
    words = f"{free} MiB free; a CVM of 512 MiB may take 1 GiB"
    yield _Check("memory", free << 20 >= _MEMORY_WANTED, False, words)
    yield from _cache_checks(bool(missing))


def _check(name: str, good: bool, words: str, makes: set[str], missing: set[str]) -> _Check:
    """Of something that is necessary only for making what is not there yet."""
    if not good and makes and not makes & missing:
        words += f"; not needed now: {' and '.join(_MADE[item] for item in sorted(makes))} are at hand"
    return _Check(name, good, bool(makes & missing), words)


def _find(command: str) -> str | None:
    """As those who need it look: beside Python, which is where `make setup` puts cmake and ninja, then in PATH."""
    beside = Path(sys.executable).parent / command
    return str(beside) if os.access(beside, os.X_OK) else shutil.which(command)


def _still_to_make() -> set[str]:
    from veil.cache import Cache
    from veil.guest.ingredients import still_to_make
    from veil.guest.linux.kernel import DEFAULT_SERIES
    from veil.snp import engine_at_hand

    return still_to_make(Cache(), DEFAULT_SERIES) | (set() if engine_at_hand() is not None else {"engine"})


def _compiler_checks(missing: set[str]) -> Iterator[_Check]:
    """As engine and agent look for it: $CC, or cc."""
    command = shlex.split(os.environ.get("CC", "")) or ["cc"]
    path = shutil.which(command[0])
    words = "not found: it builds the CPU engine and the guest's agent (Debian: apt install gcc; or set CC)"
    yield _check("C compiler", path is not None, path or words, {"engine", "agent"}, missing)
    if path is not None:
        good, words = False, "libc.a and the headers, for engine and agent (Debian: apt install libc6-dev)"
        try:
            good = _compiles([*command, "-static"]) and _compiles(command, b"#include <stdio.h>\n")
        except OSError as error:
            words = f"not tried: {describe(error)}"
        yield _check("static libc", good, words, {"engine", "agent"}, missing)


def _compiles(command: list[str], first: bytes = b"") -> bool:
    """In the cache, where engine and agent are compiled: a full /tmp matters to neither. Raises OSError."""
    from veil.cache import cache_directory

    root = cache_directory()
    place = root if os.access(root, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="veil-doctor-", dir=place) as work:
        words = [*command, "-x", "c", "-o", f"{work}/program", "-"]
        environment = tool_environment(Path(work))
        done = subprocess.run(words, input=first + _LIBC_TEST, capture_output=True, check=False, env=environment)
        if done.returncode:
            refuse_full_disk(done.stderr.decode(errors="replace"), Path(work))
    return done.returncode == 0


def _free_memory() -> int:
    """With what the operating system gives back when it is asked (MemAvailable of proc(5)); bytes."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _cache_checks(first: bool) -> Iterator[_Check]:
    from veil.cache import cache_directory

    root = cache_directory()
    there = next((path for path in (root, *root.parents) if path.exists()), Path("/"))
    writable = os.access(there, os.W_OK)
    yield _Check("cache", writable, True, f"{root} is {'' if writable else 'not '}writable (XDG_CACHE_HOME moves it)")
    free = shutil.disk_usage(there).free
    words = f"{free >> 20} MiB free; kernel, engine and eight snapshots take 2 GiB"
    if first and free < _DISK_NEEDED:
        yield _Check("disk", False, True, f"{words}, the first start {_DISK_NEEDED >> 20} MiB of it")
    else:
        yield _Check("disk", free >= _DISK_WANTED, False, words)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--engine/--no-engine", default=True, help="Also build (the first time) and load the CPU engine.")
def doctor(as_json: bool, engine: bool) -> int:
    """Check what this computer has and lacks.

    MISSING is what the next command cannot do without; what only makes things that are at hand already is not.

    Exit status: 0 if a CVM can run here, 1 if something necessary is missing.
    """
    checks = list(_checks())
    if engine and all(check.good or not check.needed for check in checks):
        checks.append(_attempt("engine", _load_engine))
    if as_json:
        emit_json([vars(check) for check in checks])
    else:
        for check in checks:
            mark = "ok     " if check.good else "MISSING" if check.needed else "without"
            say(f"{mark}  {check.name:<20} {check.words}")
    return 0 if all(check.good or not check.needed for check in checks) else 1


def _load_engine() -> str:
    from veil.snp import Machine, build_engine

    path = build_engine(lambda message: tell(f"veil: {message}"))
    Machine(2 << 20).close()
    return str(path)


def _attempt(name: str, action: Callable[[], str]) -> _Check:
    from veil.snp.errors import SnpError

    try:
        return _Check(name, True, True, action())
    except SnpError as error:
        return _Check(name, False, True, str(error))
