# SPDX-License-Identifier: GPL-2.0-or-later
"""Compile the guest agent, once for each version of its source and of the compiler."""

import os
import re
import shlex
import shutil
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from veil.cache import Cache, cache_key
from veil.disk import refuse_full_disk
from veil.guest.errors import GuestImageError
from veil.guest.toolchain import at_hand, built, find_program, programs_of, run_tool
from veil.private_files import make_folder, write_new

__all__ = ["agent_at_hand", "agent_compiler", "agent_sources", "build_agent"]

_KIND = "agent"
# -Wl,--build-id=none and no debug information: the same source and compiler give the same bytes, and so the same
# launch measurement, wherever the cache lies. Static: the guest has no C library.
_FLAGS = ("-std=gnu11", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wl,--build-id=none")
_DEPENDENCY = re.compile(r"(?:\\.|[^\s\\])+")


def agent_sources() -> dict[str, bytes]:
    """The agent's C files by name."""
    place = files("veil.guest.agent").joinpath("src")
    return {item.name: item.read_bytes() for item in place.iterdir() if item.name.endswith((".c", ".h"))}


def agent_compiler() -> str:
    """The command: $CC, or cc."""
    return os.environ.get("CC") or "cc"


def build_agent(cache: Cache) -> Path:
    """The agent's executable, a static x86-64 ELF program."""

    def build(directory: Path) -> Iterable[Path]:
        compiler = shlex.split(agent_compiler())
        sources = sorted(agent_sources().items())
        work = directory / "source"
        make_folder(work)
        for name, data in sources:
            write_new(work / name, data)
        units = [name for name, _ in sources if name.endswith(".c")]
        flags = [*_FLAGS, f"-ffile-prefix-map={work}=."]
        _run([*compiler, *flags, "-Wl,--dependency-file=link.d", "-o", "../agent", *units], work)
        compiled = _run([*compiler, *flags, "-M", *units], work)
        read = map(Path, _dependencies(compiled) | _dependencies((work / "link.d").read_text()))
        shutil.rmtree(work)
        # What remains is the system's: headers, start files, libraries. Objects in between are gone by now.
        outside = {path for path in read if path.is_absolute() and path.is_file() and path.parent != directory}
        return outside | set(programs_of(compiler))

    return built(cache, _KIND, _key(), build) / "agent"


def agent_at_hand(cache: Cache) -> Path | None:
    """The same, if it need not be built."""
    place = at_hand(cache, _KIND, _key())
    return place / "agent" if place is not None else None


def _key() -> str:
    compiler = agent_compiler()
    program = find_program((shlex.split(compiler) or ["cc"])[0]) or ""
    parts = (part for source in sorted(agent_sources().items()) for part in source)
    return cache_key(compiler, program, *_FLAGS, *parts)


def _dependencies(text: str) -> set[str]:
    """The files in rules for make."""
    words = _DEPENDENCY.findall(text.replace("\\\n", " "))
    return {re.sub(r"\\(.)", r"\1", word) for word in words if not word.endswith(":")}


def _run(command: list[str], directory: Path | None) -> str:
    try:
        done = run_tool(command, directory)
    except OSError as error:
        raise GuestImageError(f"no C compiler: cannot run {command[0]} ({error.strerror}); install gcc") from error
    if done.returncode:
        if directory is not None:
            refuse_full_disk(done.stderr, directory)
        lines = [line for line in done.stderr.splitlines() if "error" in line or "cannot find" in line]
        reason = (lines or done.stderr.splitlines() or [f"exit status {done.returncode}"])[0]
        raise GuestImageError(f"cannot compile the guest agent: {reason}")
    return done.stdout
