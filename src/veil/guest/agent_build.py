# SPDX-License-Identifier: GPL-2.0-or-later
"""Compile the guest agent, once for each version of its source and of the compiler."""

import os
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

from veil.cache import Cache, CacheError, cache_key
from veil.disk import full_disk_words, says_full, tool_environment
from veil.guest.errors import GuestImageError

# -Wl,--build-id=none and no debug information: the same source and compiler give the same bytes, and so the same
# launch measurement, wherever the cache lies. Static: the guest has no C library.
_FLAGS = ("-std=gnu11", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wl,--build-id=none")


def agent_sources() -> dict[str, bytes]:
    """The agent's C files by name."""
    place = files("veil.guest").joinpath("agent")
    return {item.name: item.read_bytes() for item in place.iterdir() if item.name.endswith((".c", ".h"))}


def build_agent(cache: Cache) -> Path:
    """The agent's executable, a static x86-64 ELF program."""
    compiler = os.environ.get("CC") or "cc"
    sources = sorted(agent_sources().items())

    def build(directory: Path) -> None:
        work = directory / "source"
        work.mkdir()
        for name, data in sources:
            (work / name).write_bytes(data)
        units = [name for name, _ in sources if name.endswith(".c")]
        _run([*compiler.split(), *_FLAGS, "-o", "../agent", *units], work)
        shutil.rmtree(work)

    key = cache_key(_version(compiler), *_FLAGS, *(part for source in sources for part in source))
    return cache.entry("agent", key, build) / "agent"


def _version(compiler: str) -> str:
    return _run([*compiler.split(), "--version"], None) + _run([*compiler.split(), "-dumpmachine"], None)


def _run(command: list[str], directory: Path | None) -> str:
    try:
        done = subprocess.run(
            command, cwd=directory, env=tool_environment(directory), capture_output=True, text=True, errors="replace",
            check=False,
        )  # fmt: skip
    except OSError as error:
        raise GuestImageError(f"no C compiler: cannot run {command[0]} ({error.strerror}); install gcc") from error
    if done.returncode:
        if directory is not None and says_full(done.stderr, directory):
            raise CacheError(full_disk_words("the guest's agent", directory))
        lines = [line for line in done.stderr.splitlines() if "error" in line or "cannot find" in line]
        reason = (lines or done.stderr.splitlines() or [f"exit status {done.returncode}"])[0]
        raise GuestImageError(f"cannot compile the guest agent: {reason}")
    return done.stdout
