# SPDX-License-Identifier: GPL-2.0-or-later
"""A checkout of kvm-unit-tests: which tests it has, and a copy of it that is built for EFI.

The checkout itself stays as it is.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvm_unit_tests.adaptations import adapt
from kvm_unit_tests.errors import JudgeError

__all__ = ["Test", "build", "read_tests"]

_CONFIGURATION = Path("x86/unittests.cfg")
_FOLDERS = ("common", "lib", "scripts", "x86")
_FILES = ("Makefile", "configure")
#: What a build of the user's own left there.
_MADE = ("*.o", "*.a", "*.so", "*.efi", "*.debug", ".*.d", "config.mak")
_HEADING = re.compile(r"\[([\w.-]+)\]")
_SETTING = re.compile(r"(\w+)\s*=\s*(.*)")
#: Built for EFI, but not among the configured ones.
_UNLISTED = ("dummy", "amd_sev", "hpet_read_test")


@dataclass(frozen=True)
class Test:
    """One run: a program, called as it is, or with the arguments and by the name that unittests.cfg has."""

    name: str
    program: str
    arguments: str = ""

    # pytest looks for classes with such names.
    __test__ = False


def read_tests(checkout: Path) -> list[Test]:
    """What x86/unittests.cfg names, and programs that are not named there. Raises JudgeError."""
    path = checkout / _CONFIGURATION
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise JudgeError(
            f"{checkout}: not a checkout of kvm-unit-tests ({_CONFIGURATION}: {error.strerror})"
        ) from error
    sections: list[tuple[str, dict[str, str]]] = []
    for line in text.splitlines():
        if match := _HEADING.fullmatch(line.strip()):
            sections.append((match[1], {}))
        elif sections and (match := _SETTING.fullmatch(line.strip())):
            sections[-1][1][match[1]] = match[2]
    tests = [Test(name, name) for name in _UNLISTED]
    tests += [test for name, settings in sections if (test := _test(name, settings)) is not None]
    # Sections that differ in QEMU's options alone, which say what processor there is, are one test here.
    return list({(test.program, test.arguments): test for test in tests}.values())


def _test(name: str, settings: dict[str, str]) -> Test | None:
    file = settings.get("file", "")
    if not re.fullmatch(r"[\w-]+\.flat", file):
        return None
    program = file.removesuffix(".flat")
    arguments = " ".join(_words(settings.get("test_args", "")))
    return Test(name if arguments else program, program, arguments)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def build(checkout: Path, place: Path, programs: Sequence[str]) -> dict[str, Path]:
    """Copy the checkout to `place`, adapt and build it: a path for each program that it has a rule for.

    Raises JudgeError if it cannot be built at all, in one line.
    """
    for part in (*_FOLDERS, *_FILES):
        if not (checkout / part).exists():
            raise JudgeError(f"{checkout}: not a checkout of kvm-unit-tests ({part} is missing)")

    def left_out(folder: str, names: list[str]) -> set[str]:
        found = set(shutil.ignore_patterns(*_MADE)(folder, names))
        if Path(folder) == checkout:
            found |= {name for name in names if (checkout / name).is_dir() and name not in _FOLDERS}
        # A link that configure makes.
        return found | ({"asm"} if Path(folder) == checkout / "lib" else set())

    shutil.copytree(checkout, place, ignore=left_out, dirs_exist_ok=True)
    adapt(place)
    _run(["./configure", "--arch=x86_64", "--enable-efi"], place)
    targets = [f"x86/{program}.efi" for program in dict.fromkeys(programs)]
    # Some programs are not made for EFI: make goes on with the others.
    _run(["make", "-k", f"-j{os.cpu_count() or 1}", *targets], place, may_fail=True)
    made = {program: place / f"x86/{program}.efi" for program in programs}
    found = {program: path for program, path in made.items() if path.is_file()}
    if not found:
        _run(["make", targets[0]], place)
        raise JudgeError(f"{checkout}: nothing was built")
    return found


def _run(command: Sequence[str], place: Path, *, may_fail: bool = False) -> None:
    try:
        done = subprocess.run(
            command, cwd=place, capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise JudgeError(f"{command[0]}: {error.strerror} (Debian: apt install make gcc libc6-dev)") from error
    if done.returncode and not may_fail:
        said = (done.stderr or done.stdout).strip().splitlines()
        line = next((line for line in said if re.search(r"\b(error|Error)\b", line)), said[-1] if said else "")
        raise JudgeError(f"{shlex.join(command)} ended with {done.returncode}: {line.strip()[:200]}")
