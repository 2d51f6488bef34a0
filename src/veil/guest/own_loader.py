# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of another Debian than this computer's, out of unpacked packages: nothing is installed.

Each is started by the loader that came with it, with the libraries beside that, from a script that stands where other
programs look for it (ld.so(8)).
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from veil.guest.apt import LIBRARY_FOLDERS
from veil.guest.elf import is_elf
from veil.guest.errors import GuestImageError
from veil.private_files import make_folder, write_new

__all__ = ["OwnLoader", "is_program"]

_LOADER = "ld-linux-x86-64.so.2"
_EXECUTABLE = 0o700


@dataclass(frozen=True)
class OwnLoader:
    """The loader of one Debian."""

    loader: Path
    libraries: tuple[Path, ...]

    @classmethod
    def of(cls, root: Path, *more: Path) -> OwnLoader:
        """That of the packages in `root`, with `more` folders of libraries. Raises GuestImageError."""
        folders = [root / name for name in LIBRARY_FOLDERS if (root / name).is_dir()]
        loader = next((place / _LOADER for place in folders if (place / _LOADER).exists()), None)
        if loader is None:
            raise GuestImageError(f"no {_LOADER} in {root}: the C library's package has another layout")
        return cls(loader, (*folders, *more))

    def script(self, script: Path, program: Path, *arguments: str) -> None:
        """Make `script` start a program, with arguments before those that it is given."""
        loader = shlex.join([str(self.loader), "--inhibit-cache", "--library-path", ":".join(map(str, self.libraries))])
        # By their names some find others that stand beside them: those scripts, not these programs.
        line = f'{loader} --argv0 "$0" {shlex.join([str(program), *arguments])} "$@"'
        write_new(script, f"#!/bin/sh\nexec {line}\n", mode=_EXECUTABLE)

    def folder(self, folder: Path, given: Path) -> None:
        """Make `folder` the same as `given`, with scripts in place of programs."""
        make_folder(folder)
        for item in given.iterdir():
            if item.is_dir() and not item.is_symlink():
                self.folder(folder / item.name, item)
            elif is_program(item):
                self.script(folder / item.name, item.resolve())
            else:
                (folder / item.name).symlink_to(item)


def is_program(path: Path) -> bool:
    """Is it an ELF file that can be started?"""
    if not path.is_file() or not path.stat().st_mode & 0o100:
        return False
    with path.open("rb") as file:
        return is_elf(file.read(64))
