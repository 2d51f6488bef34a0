# SPDX-License-Identifier: GPL-2.0-or-later
"""veil doctor"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from veil.cli.output import emit_json, say, tell

__all__ = ["doctor"]

_MEMORY_NEEDED = 1 << 30
_DISK_NEEDED = 2 << 30

# (command, Debian package, what for, is it necessary)
_TOOLS = (
    ("cc", "gcc", "builds the CPU engine and the guest's agent", True),
    ("as", "binutils", "assembles the tests' machine code", False),
    ("make", "make", "builds the driver, and runs the targets of the Makefile", True),
    ("strip", "binutils", "makes the driver small", True),
    ("apt-get", "apt", "fetches the guest's kernel", True),
    ("dpkg-deb", "dpkg", "unpacks the guest's kernel", True),
    ("qemu-system-x86_64", "qemu-system-x86", "is what `make bench` compares with", False),
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
    for command, package, purpose, needed in _TOOLS:
        path = shutil.which(command)
        words = f"{path}" if path else f"not found: it {purpose} (Debian: apt install {package})"
        yield _Check(command, path is not None, needed, words)
    yield _Check("static libc", _links_static(), True, "libc.a for the guest's agent (Debian: apt install libc6-dev)")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    yield _Check("memory", memory >= _MEMORY_NEEDED, True, f"{memory >> 20} MiB free; a CVM of 512 MiB wants 1 GiB")
    yield from _cache_checks()


def _cache_checks() -> Iterator[_Check]:
    from veil.cache import cache_directory

    root = cache_directory()
    there = next((path for path in (root, *root.parents) if path.exists()), Path("/"))
    writable = os.access(there, os.W_OK)
    yield _Check("cache", writable, True, f"{root} is {'' if writable else 'not '}writable (XDG_CACHE_HOME moves it)")
    free = shutil.disk_usage(there).free
    yield _Check("disk", free >= _DISK_NEEDED, True, f"{free >> 20} MiB free; kernel, engine and snapshots take 2 GiB")


def _links_static() -> bool:
    if shutil.which("cc") is None:
        return False
    done = subprocess.run(
        ["cc", "-static", "-x", "c", "-o", os.devnull, "-"], input=b"int main(void) { return 0; }", capture_output=True
    )
    return done.returncode == 0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--engine/--no-engine", default=True, help="Also build (the first time) and load the CPU engine.")
def doctor(as_json: bool, engine: bool) -> int:
    """Check what this computer has and lacks. Status 0 if a CVM can run here, 1 if something necessary is missing."""
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
