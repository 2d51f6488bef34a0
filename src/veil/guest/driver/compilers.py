# SPDX-License-Identifier: GPL-2.0-or-later
"""The compiler that a kernel was made with: the one at hand, or Debian's, unpacked in the cache and run from there.

A kernel's configuration has what its own compiler can do, and its headers come with programs that want the C library of
their Debian. Where this computer's compiler is another one, or its C library is older, both are fetched from the
kernel's Debian.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from veil.cache import Cache
from veil.guest.apt import Apt
from veil.guest.driver.headers import KernelHeaders, suites_of
from veil.guest.errors import GuestImageError, NoDriverError
from veil.guest.linux.kernel import Kernel
from veil.guest.own_loader import OwnLoader, is_program
from veil.guest.toolchain import compiler_version, find_program, programs_of, run_tool
from veil.private_files import make_folder

__all__ = ["COMPILER_AT_HAND", "BuildTools", "build_tools", "kernel_compiler", "needed_glibc"]

COMPILER_AT_HAND = "gcc"
_COMPILERS = "compiler"
_TRIPLE = "x86_64-linux-gnu"
_GCC = re.compile(r"\((?:[\w.-]*-)?gcc(?:-\d+)? \(.*?\) (?P<version>\d+)\.")
_GLIBC = re.compile(rb"GLIBC_2\.(\d+)")
#: What a module is built with, by make's names.
_TOOLS = {
    "LD": "ld", "AR": "ar", "NM": "nm", "OBJCOPY": "objcopy", "OBJDUMP": "objdump", "READELF": "readelf",
    "STRIP": "strip",
}  # fmt: skip
#: What the compiler starts: programs of its own, and binutils'.
_INSIDE = ("cc1", "collect2")
_BESIDE = ("as", "ld")


@dataclass(frozen=True)
class BuildTools:
    """What a module is built with."""

    commands: Mapping[str, str]
    """By make's names: CC, STRIP, and others that are not this computer's."""
    files: tuple[Path, ...]
    """What takes part: programs, or the manifest of the packages that they are in."""
    loader: OwnLoader | None = None
    """How the headers' programs are started, if they do not run here."""

    def description(self) -> str:
        """Compiler and linker in words."""
        if self.loader is None:
            return compiler_version(self.commands["CC"])
        lines = (run_tool([self.commands[name], "--version"]).stdout.splitlines()[:1] for name in ("CC", "LD"))
        return ", ".join(line for found in lines for line in found)


def kernel_compiler(banner: str) -> int | None:
    """The version of GCC that made the kernel with this banner; None if another compiler did."""
    match = _GCC.search(banner)
    return int(match["version"]) if match is not None else None


def needed_glibc(folder: Path) -> int:
    """The newest version 2.x of the C library that a program in this folder names."""
    programs = filter(is_program, folder.rglob("*"))
    return max((int(found) for path in programs for found in _GLIBC.findall(path.read_bytes())), default=0)


def build_tools(
    cache: Cache, kernel: Kernel, headers: KernelHeaders, scratch: Path, say: Callable[[str], None]
) -> BuildTools:
    """The compiler for this kernel: the one at hand if it is of the kernel's version and the headers' programs run
    here, or else Debian's, started by scripts in `scratch`. Raises GuestImageError, NoDriverError if there is none."""
    wanted = kernel_compiler(kernel.banner)
    if wanted is None:
        raise NoDriverError(f"GCC did not compile Linux {kernel.release}, so nothing can be built for it")
    if _version_at_hand() == wanted and needed_glibc(headers.kbuild) <= _own_glibc():
        tools = filter(None, map(find_program, ("strip", "objcopy")))
        return BuildTools(
            {"CC": COMPILER_AT_HAND, "STRIP": "strip"}, (*programs_of([COMPILER_AT_HAND]), *map(Path, tools))
        )
    key, place = _fetched(cache, wanted, suites_of(kernel), say)
    loader = OwnLoader.of(place, headers.libraries)
    return BuildTools(_commands(place, wanted, loader, scratch), (cache.manifest(_COMPILERS, key),), loader)


def _version_at_hand() -> int | None:
    try:
        found = run_tool([COMPILER_AT_HAND, "-dumpversion"]).stdout.partition(".")[0].strip()
    except OSError:
        return None
    return int(found) if found.isdecimal() else None


def _own_glibc() -> int:
    """This computer's C library is version 2.x; 0 if it has another one."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" 2.")
    except (OSError, ValueError):
        return 0
    return int(version.partition(".")[0]) if name == "glibc" else 0


def _fetched(cache: Cache, version: int, suites: Iterable[str | None], say: Callable[[str], None]) -> tuple[str, Path]:
    """GCC of this version out of the first suite that has it, with its libraries: key and folder of the entry."""
    asked = []
    # Backports have the compilers of what they build upon.
    for suite in dict.fromkeys(suite and suite.partition("-")[0] for suite in suites):
        key = f"gcc-{version}-{suite or 'configured'}"
        found = cache.lookup(_COMPILERS, key, verify=False)
        if found is not None:
            return key, found
        apt = Apt(cache, suite=suite)
        # Up to Debian 12 the programs are in gcc-12 itself.
        names = apt.names(f"^gcc-{version}", re.compile(f"gcc-{version}"))
        suffix = next((end for end in (f"-{_TRIPLE.replace('_', '-')}", "") if f"gcc-{version}{end}" in names), None)
        if suffix is None:
            asked.append(suite or "the configured Debian")
            continue

        def build(directory: Path, apt: Apt = apt, suffix: str = suffix) -> None:
            _unpack(apt, version, suffix, directory, say)

        return key, cache.entry(_COMPILERS, key, build, verify=False)
    raise NoDriverError(f"no package gcc-{version}, the kernel's compiler, in {', '.join(asked)}")


def _unpack(apt: Apt, version: int, suffix: str, directory: Path, say: Callable[[str], None]) -> None:
    say(f"fetching gcc-{version}")
    # The compiler itself needs no library that what it starts does not need.
    programs = [f"cpp-{version}{suffix}", f"binutils-{_TRIPLE.replace('_', '-')}"]
    needed = [name for package in programs for name in apt.dependencies(package) if name.startswith("lib")]
    apt.unpack_all(list(dict.fromkeys([f"gcc-{version}{suffix}", *programs, *needed])), directory)
    shutil.rmtree(directory / "usr/share", ignore_errors=True)


def _commands(place: Path, version: int, loader: OwnLoader, scratch: Path) -> dict[str, str]:
    """Scripts for the programs in `place`, and by make's names those that it starts."""
    inside = {name: next(place.glob(f"usr/lib*/gcc/{_TRIPLE}/{version}/{name}"), None) for name in _INSIDE}
    binutils = {name: place / f"usr/bin/{_TRIPLE}-{name}" for name in {*_BESIDE, *_TOOLS.values()}}
    compiler = place / f"usr/bin/{_TRIPLE}-gcc-{version}"
    programs = {**inside, **binutils, "gcc": compiler}
    missing = [name for name, program in programs.items() if program is None or not program.exists()]
    if missing:
        raise GuestImageError(f"gcc-{version} has no {', '.join(missing)} in {place}: its packages have another layout")
    make_folder(scratch)
    for name, program in programs.items():
        assert program is not None
        # Where the compiler looks first for what it starts.
        arguments = (f"-B{scratch}/",) if name == "gcc" else ()
        loader.script(scratch / name, program.resolve(), *arguments)
    return {"CC": str(scratch / "gcc"), **{variable: str(scratch / name) for variable, name in _TOOLS.items()}}
