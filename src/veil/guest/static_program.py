# SPDX-License-Identifier: GPL-2.0-or-later
"""Static C programs for the guest, which has no C library: compiled once for each version of source and compiler."""

import os
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from veil.cache import Cache, cache_key
from veil.disk import refuse_full_disk
from veil.guest.errors import GuestImageError
from veil.guest.toolchain import at_hand, built, find_program, programs_of, run_tool
from veil.private_files import make_folder, write_new

__all__ = ["build_program", "program_at_hand", "program_compiler"]

# -Wl,--build-id=none and no debug information: the same source and compiler give the same bytes, and so the same
# launch measurement, wherever the cache lies.
_FLAGS = ("-std=gnu11", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wl,--build-id=none")
_DEPENDENCY = re.compile(r"(?:\\.|[^\s\\])+")


def program_compiler() -> str:
    """The command: $CC, or cc."""
    return os.environ.get("CC") or "cc"


def build_program(cache: Cache, name: str, sources: Mapping[str, bytes]) -> Path:
    """The executable of C files and headers, by their paths below one folder: a static x86-64 ELF program.

    Raises GuestImageError.
    """

    def build(directory: Path) -> Iterable[Path]:
        compiler = shlex.split(program_compiler())
        work = directory / "source"
        for path, data in sorted(sources.items()):
            make_folder((work / path).parent)
            write_new(work / path, data)
        units = [path for path in sorted(sources) if path.endswith(".c")]
        flags = [*_FLAGS, f"-ffile-prefix-map={work}=."]
        _run(name, [*compiler, *flags, "-Wl,--dependency-file=link.d", "-o", f"../{name}", *units], work)
        compiled = _run(name, [*compiler, *flags, "-M", *units], work)
        read = map(Path, _dependencies(compiled) | _dependencies((work / "link.d").read_text()))
        shutil.rmtree(work)
        # What remains is the system's: headers, start files, libraries. Objects in between are gone by now.
        outside = {path for path in read if path.is_absolute() and path.is_file() and path.parent != directory}
        return outside | set(programs_of(compiler))

    return built(cache, name, _key(sources), build) / name


def program_at_hand(cache: Cache, name: str, sources: Mapping[str, bytes]) -> Path | None:
    """The same, if it need not be built."""
    place = at_hand(cache, name, _key(sources))
    return place / name if place is not None else None


def _key(sources: Mapping[str, bytes]) -> str:
    compiler = program_compiler()
    program = find_program((shlex.split(compiler) or ["cc"])[0]) or ""
    parts = (part for source in sorted(sources.items()) for part in source)
    return cache_key(compiler, program, *_FLAGS, *parts)


def _dependencies(text: str) -> set[str]:
    """The files in rules for make."""
    words = _DEPENDENCY.findall(text.replace("\\\n", " "))
    return {re.sub(r"\\(.)", r"\1", word) for word in words if not word.endswith(":")}


def _run(name: str, command: list[str], directory: Path | None) -> str:
    try:
        done = run_tool(command, directory)
    except OSError as error:
        raise GuestImageError(f"no C compiler: cannot run {command[0]} ({error.strerror}); install gcc") from error
    if done.returncode:
        if directory is not None:
            refuse_full_disk(done.stderr, directory)
        lines = [line for line in done.stderr.splitlines() if "error" in line or "cannot find" in line]
        reason = (lines or done.stderr.splitlines() or [f"exit status {done.returncode}"])[0]
        raise GuestImageError(f"cannot compile the guest's {name}: {reason}")
    return done.stdout
