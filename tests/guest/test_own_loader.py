# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that are started by a loader of their own, here copies of this computer's."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from veil.guest.errors import GuestImageError
from veil.guest.own_loader import OwnLoader, is_program

_LOADER = "/lib64/ld-linux-x86-64.so.2"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Packages with a loader, a C library and a shell."""
    root = tmp_path / "root with a space"
    place = root / "usr/lib/x86_64-linux-gnu"
    place.mkdir(parents=True)
    (root / "scripts/mod").mkdir(parents=True)
    shutil.copy(_LOADER, place)
    shutil.copy(_library("libc.so.6"), place)
    shutil.copy("/bin/dash", root / "scripts/mod/shell")
    (root / "scripts/Makefile").write_text("all:\n")
    (root / "scripts/text").write_bytes(b"\x7fELF")
    (root / "scripts/shell").symlink_to("mod/shell")
    return root


def _library(name: str) -> Path:
    return next(place / name for place in map(Path, ("/lib/x86_64-linux-gnu", "/lib64")) if (place / name).exists())


def test_a_program_and_its_libraries(root: Path, tmp_path: Path) -> None:
    script = tmp_path / "shell"
    OwnLoader.of(root).script(script, root / "scripts/mod/shell", "-c", 'echo "$0:$1:$LD"; cat /proc/$$/maps')
    # The loader's own environment and name are nobody else's.
    shown = subprocess.run([script, "zero", "a b"], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[0] == "zero:a b:"
    mapped = {line.split(maxsplit=5)[5].rstrip() for line in shown.splitlines()[1:] if "/" in line}
    assert {path for path in mapped if ".so" in path} == {str(path) for path in root.rglob("*.so*")}


def test_a_program_finds_what_stands_beside_it(root: Path, tmp_path: Path) -> None:
    """As objtool starts objtool.real-x86: by its own name."""
    OwnLoader.of(root).script(tmp_path / "shell", root / "scripts/mod/shell", "-c", 'tr "\\0" "\\n" </proc/$$/cmdline')
    shown = subprocess.run([tmp_path / "shell"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path / "shell") in shown.splitlines()


def test_a_folder_with_programs(root: Path, tmp_path: Path) -> None:
    OwnLoader.of(root).folder(tmp_path / "scripts", root / "scripts")
    made = tmp_path / "scripts"
    assert (made / "Makefile").read_text() == "all:\n"
    assert (made / "Makefile").is_symlink()
    assert (made / "text").is_symlink()
    for name in ("shell", "mod/shell"):
        assert not (made / name).is_symlink()
        done = subprocess.run([made / name, "-c", "echo $1", "x", "said"], capture_output=True, text=True, check=True)
        assert done.stdout == "said\n"


def test_packages_of_another_layout(tmp_path: Path) -> None:
    with pytest.raises(GuestImageError, match=r"no ld-linux-x86-64\.so\.2"):
        OwnLoader.of(tmp_path)


def test_what_is_a_program(root: Path) -> None:
    assert is_program(root / "scripts/mod/shell")
    assert not is_program(root / "scripts/text")
    assert not is_program(root / "scripts")
    assert not is_program(root / "nothing")
    os.chmod(root / "scripts/Makefile", 0o755)
    assert not is_program(root / "scripts/Makefile")
