# SPDX-License-Identifier: GPL-2.0-or-later
"""Compile the runtime, once for each version of its source and of the compiler. It is measured with each enclave."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from veil.cache import Cache, cache_key
from veil.disk import refuse_full_disk
from veil.formats.enclaves import RUNTIME
from veil.guest.elf import ElfProgram, parse_program
from veil.guest.errors import GuestImageError
from veil.guest.toolchain import built, find_program, programs_of, run_tool
from veil.private_files import make_folder, write_new

__all__ = ["RUNTIME_FLAGS", "Runtime", "build_runtime", "runtime_sources"]

_KIND = "enclave-runtime"
#: General registers only: the program's others stay where they are while the runtime works. And each page of a stack is
#: touched in its order, so that none is left out on the way to what lies below.
RUNTIME_FLAGS = (
    "-std=gnu11", "-O2", "-ffreestanding", "-fno-builtin", "-fpie", "-mgeneral-regs-only", "-fno-stack-protector",
    "-fstack-clash-protection", "-fno-asynchronous-unwind-tables", "-fcf-protection=none", "-Wall", "-Wextra",
    "-Werror",
)  # fmt: skip
_LINK_FLAGS = (
    "-nostdlib", "-static", "-no-pie", "-s", "-Wl,--build-id=none", "-Wl,-z,max-page-size=4096",
    "-Wl,--orphan-handling=error",
)  # fmt: skip
_DEPENDENCY = re.compile(r"(?:\\.|[^\s\\])+")


@dataclass(frozen=True)
class Runtime:
    """The linked program, at its fixed address."""

    elf: ElfProgram

    @property
    def entry(self) -> int:
        """Where each slot begins."""
        return self.elf.entry

    @property
    def vectors(self) -> int:
        """The linker script puts them first."""
        return RUNTIME


def runtime_sources() -> dict[str, bytes]:
    """Its files by path below guest/enclaves."""
    place = files("veil.guest.enclaves")
    source = place.joinpath("runtime", "src")
    shared = {name: place.joinpath(name).read_bytes() for name in ("abi.h", "program_calls.h")}
    return shared | {
        f"runtime/src/{item.name}": item.read_bytes()
        for item in source.iterdir()
        if item.name.endswith((".c", ".h", ".S", ".def", ".ld"))
    }


def build_runtime(cache: Cache) -> Runtime:
    """Raises GuestImageError."""
    compiler = shlex.split(os.environ.get("CC") or "cc")

    def build(directory: Path) -> Iterable[Path]:
        work = directory / "source"
        sources = sorted(runtime_sources().items())
        for name, data in sources:
            make_folder((work / name).parent)
            write_new(work / name, data)
        units = [name for name, _ in sources if name.endswith((".c", ".S"))]
        flags = [*RUNTIME_FLAGS, f"-ffile-prefix-map={work}=."]
        script = f"-Wl,-T,{work / 'runtime/src/runtime.ld'}"
        _run([*compiler, *flags, *_LINK_FLAGS, script, "-o", "../runtime", *units], work)
        read = map(Path, _dependencies(_run([*compiler, *flags, "-M", *units], work)))
        shutil.rmtree(work)
        return {path for path in read if path.is_absolute() and path.is_file()} | set(programs_of(compiler))

    parts = (part for source in sorted(runtime_sources().items()) for part in source)
    key = cache_key(*compiler, find_program(compiler[0]) or "", *RUNTIME_FLAGS, *_LINK_FLAGS, *parts)
    place = built(cache, _KIND, key, build) / "runtime"
    return Runtime(parse_program(place.read_bytes(), "the runtime"))


def _dependencies(text: str) -> set[str]:
    """The files in rules for make."""
    words = _DEPENDENCY.findall(text.replace("\\\n", " "))
    return {re.sub(r"\\(.)", r"\1", word) for word in words if not word.endswith(":")}


def _run(command: list[str], directory: Path) -> str:
    try:
        done = run_tool(command, directory)
    except OSError as error:
        raise GuestImageError(f"no C compiler: cannot run {command[0]} ({error.strerror}); install gcc") from error
    if done.returncode:
        refuse_full_disk(done.stderr, directory)
        lines = [line for line in done.stderr.splitlines() if "rror" in line]
        reason = (lines or done.stderr.splitlines() or [f"exit status {done.returncode}"])[0]
        raise GuestImageError(f"cannot compile the runtime of enclaves: {reason}")
    return done.stdout
