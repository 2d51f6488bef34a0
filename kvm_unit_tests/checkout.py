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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvm_unit_tests.adaptations import adapt
from kvm_unit_tests.errors import JudgeError

__all__ = ["Built", "Test", "build", "read_tests"]

_CONFIGURATION = Path("x86/unittests.cfg")
_FOLDERS = ("common", "lib", "scripts", "x86")
_FILES = ("Makefile", "configure")
#: What a build of the user's own left there; and what makes of warnings errors (a submodule's .git is a file).
_MADE = ("*.o", "*.a", "*.so", "*.efi", "*.debug", ".*.d", "config.mak", ".git")
_HEADING = re.compile(r"\[([\w.-]+)\]")
_SETTING = re.compile(r"(\w+)\s*=\s*(.*)")
#: Built for EFI, but not among the configured ones.
_UNLISTED = ("dummy", "amd_sev", "hpet_read_test", "init", "tscdeadline_latency")


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


@dataclass(frozen=True)
class Built:
    """Paths of programs, and for those that could not be built, why. The rest make has no rule for."""

    programs: Mapping[str, Path]
    failed: Mapping[str, str]


def build(checkout: Path, place: Path, programs: Sequence[str]) -> Built:
    """Copy the checkout to `place`, adapt and build it. Raises JudgeError in one line if nothing can be built."""
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
    _run(["./configure", "--arch=x86_64", "--enable-efi", "--disable-werror"], place)
    for_efi = _programs_for_efi(place)
    wanted = [program for program in dict.fromkeys(programs) if program in for_efi]
    if not wanted:
        return Built({}, {})
    # What fails does not keep the others from being built.
    said = _run(["make", "-k", f"-j{os.cpu_count() or 1}", *map(_target, wanted)], place, may_fail=True)
    made = {program: place / _target(program) for program in wanted}
    found = {program: path for program, path in made.items() if path.is_file()}
    if not found:
        _run(["make", _target(wanted[0])], place)
        raise JudgeError(f"{checkout}: nothing was built")
    return Built(found, {program: _error(said, f"x86/{program}.") for program in wanted if program not in found})


def _target(program: str) -> str:
    return f"x86/{program}.efi"


def _programs_for_efi(place: Path) -> set[str]:
    """Those that make would build if it was told nothing. It may have rules for others by which they cannot be linked,
    or cannot run."""
    rules = _run(["make", "-pq", "all"], place, may_fail=True)
    listed = next((line for line in rules if line.startswith("test_cases:")), "")
    found = set(re.findall(r"x86/([\w-]+)\.efi", listed))
    if not found:
        raise JudgeError("the checkout's Makefile lists no EFI programs: it is older or newer than is known here")
    return found


def _error(said: Sequence[str], about: str = "") -> str:
    """The line that tells most: an error about this, any error, the last one."""
    errors = [line for line in said if re.search(r"\b(error|Error)\b", line)]
    telling = [line for line in errors if about in line] or errors or list(said[-1:])
    return telling[0].strip()[:200] if telling else ""


def _run(command: Sequence[str], place: Path, *, may_fail: bool = False) -> list[str]:
    """What it said, errors first."""
    try:
        done = subprocess.run(
            command, cwd=place, capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise JudgeError(f"{command[0]}: {error.strerror} (Debian: apt install make gcc libc6-dev)") from error
    said = (done.stderr.strip() + "\n" + done.stdout.strip()).strip().splitlines()
    if done.returncode and not may_fail:
        raise JudgeError(f"{shlex.join(command)} ended with {done.returncode}: {_error(said)}")
    return said
