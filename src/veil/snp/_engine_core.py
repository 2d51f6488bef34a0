# SPDX-License-Identifier: GPL-2.0-or-later
"""The CPU engine's core: Unicorn's x86 one, built from its own source distribution.

Why a private build: docs/engine.md.  The source comes from the package index with a pinned hash.  Two things are
changed before it is compiled (the modules `_engine_*edits.py`, and the headers in `engine/shadow`), the rest when our C
code is linked to it (`_engine_build.py`), which is what changes often: so the core lies in the cache by itself.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from veil.disk import refuse_full_disk, tool_environment
from veil.private_files import UMASK, locked, make_folder, tighten, write_private
from veil.snp import _engine_edits, _engine_mxcsr_edits, _engine_opcode_edits, _engine_transfer_edits
from veil.snp.errors import EngineBuildError

__all__ = ["LIBRARIES", "UNICORN_VERSION", "build_folder", "core", "core_inputs", "find_tool", "run_tool"]

UNICORN_VERSION = "2.1.4"
_UNICORN_SHA256 = "00567a70e323f749b419cd86bee4f9115beab7ebba32194581c090cbb7c59cff"

#: What changes its sources; the first has all of it.
_EDITS = (_engine_edits, _engine_mxcsr_edits, _engine_opcode_edits, _engine_transfer_edits)

_CORE_FLAGS = ("-O2", "-fno-semantic-interposition", "-w")
#: With this, each translated block counts its instructions: a few per cent slower, for the benchmark.
_COUNTING = "-DVEIL_ENGINE_COUNTS"

#: What is linked, and what our code includes; the rest of the source and of the build is not kept.
LIBRARIES = ("libx86_64-softmmu.a", "libunicorn.a", "libunicorn-common.a")
_HEADERS = (".h", ".inc", ".def")
_CHECKSUMS = "files.sha256"


def core_inputs(engine_dir: Path) -> list[Path]:
    """Every file of ours that the core is built from."""
    edits = [Path(module.__file__ or "") for module in _EDITS]
    return sorted([*(engine_dir / "shadow").rglob("*.h"), *edits, Path(__file__)])


def core(engine_dir: Path, cache: Path, progress: Callable[[str], None], *, counting: bool = False) -> Path:
    """The core's folder below `cache`, built first if it is missing or damaged: `source/` and `build/`.

    `counting`: each translated block counts its instructions. Raises EngineBuildError and OSError.
    """
    place = cache / f"engine-core-{_digest(engine_dir, counting)}"
    make_folder(place)
    with locked(place / "lock"):
        if not _is_whole(place):
            with build_folder(place) as work:
                made = _build(engine_dir, cache / "sources", work, progress, counting)
                for name in ("source", "build"):
                    shutil.rmtree(place / name, ignore_errors=True)
                    os.rename(made / name, place / name)
            # Last: what a killed build leaves is built again.
            write_private(place / _CHECKSUMS, _checksums(place))
    return place


@contextmanager
def build_folder(place: Path) -> Iterator[Path]:
    """A new folder in one of which the caller holds the lock. Those of builds that were killed go first."""
    for left in place.glob("build-*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=place, prefix="build-") as work:
        yield Path(work)


def _digest(engine_dir: Path, counting: bool) -> str:
    digest = hashlib.sha256(f"{platform.machine()} {platform.libc_ver()[1]} {UNICORN_VERSION} {counting}".encode())
    for path in core_inputs(engine_dir):
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:20]


def _checksums(place: Path) -> str:
    """Of all that is kept: a header that is cut short may well compile, to another library."""
    files = sorted(path for name in ("source", "build") for path in (place / name).rglob("*") if path.is_file())
    return "".join(f"{_sha256(path)}  {path.relative_to(place)}\n" for path in files)


def _is_whole(place: Path) -> bool:
    try:
        known = (place / _CHECKSUMS).read_text("ascii")
        return bool(known) and known == _checksums(place)
    except (OSError, UnicodeDecodeError):
        return False


def _build(engine_dir: Path, source_cache: Path, work: Path, progress: Callable[[str], None], counting: bool) -> Path:
    cmake, ninja, compiler = find_tool("cmake"), find_tool("ninja"), find_tool(os.environ.get("CC") or "cc")
    archive = _source_archive(source_cache, progress)
    tree = _unpack(archive, work)
    _apply_edits(tree)
    core_flags = [*_CORE_FLAGS, _COUNTING] if counting else _CORE_FLAGS
    build = work / "build"
    make_folder(build)
    progress("building the CPU engine (about half a minute, once)")
    run_tool(
        [
            cmake, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DCMAKE_C_COMPILER={compiler}",
            "-DUNICORN_ARCH=x86", "-DBUILD_SHARED_LIBS=OFF", "-DUNICORN_BUILD_TESTS=OFF", "-DUNICORN_INSTALL=OFF",
            "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_C_FLAGS_RELEASE=-DNDEBUG",
            "-DCMAKE_POSITION_INDEPENDENT_CODE=ON",
            f"-DCMAKE_C_FLAGS=-iquote {engine_dir / 'shadow'} {' '.join(core_flags)}",
            str(tree / "src"),
        ],
        build,
    )  # fmt: skip
    run_tool([ninja], build)
    os.rename(tree / "src", work / "source")
    for folder, kept in ((work / "source", _HEADERS), (build, (*_HEADERS, ".a"))):
        for path in folder.rglob("*"):
            if not path.is_dir() and path.suffix not in kept:
                path.unlink()
    tighten(work)
    return work


def find_tool(name: str) -> str:
    """The path of a program that builds the engine. Raises EngineBuildError with the Debian package that brings it."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        package = {"cmake": "cmake", "ninja": "ninja-build"}.get(name, "gcc libc6-dev")
        raise EngineBuildError(f"{name!r} was not found: it builds the CPU engine (Debian: apt install {package})")
    return found


def run_tool(command: Sequence[str], directory: Path) -> None:
    """Raises EngineBuildError with the tool's first line of error, OSError if the disk is full."""
    result = subprocess.run(
        command, cwd=directory, env=tool_environment(directory), capture_output=True, text=True, errors="replace",
        check=False, umask=UMASK,
    )  # fmt: skip
    if result.returncode:
        refuse_full_disk(f"{result.stdout}\n{result.stderr}", directory)
        output = f"{result.stdout}\n{result.stderr}".strip().splitlines() or [f"exit status {result.returncode}"]
        line = next((line for line in output if re.search(r"\berror\b", line, re.IGNORECASE)), output[-1])
        raise EngineBuildError(f"building the CPU engine failed in {Path(command[0]).name}: {line.strip()}")


def _source_archive(cache: Path, progress: Callable[[str], None]) -> Path:
    archive = cache / f"unicorn-{UNICORN_VERSION}.tar.gz"
    if archive.exists() and _sha256(archive) == _UNICORN_SHA256:
        return archive
    progress("fetching the source of the CPU engine")
    make_folder(cache)
    requirement = cache / "requirement.txt"
    write_private(requirement, f"unicorn=={UNICORN_VERSION} --hash=sha256:{_UNICORN_SHA256}\n")
    run_tool(
        [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
            "--require-hashes", "--dest", str(cache), "--requirement", str(requirement),
        ],
        cache,
    )  # fmt: skip
    if not archive.exists() or _sha256(archive) != _UNICORN_SHA256:
        raise EngineBuildError(f"the package index gave no unicorn {UNICORN_VERSION} with the expected hash")
    return archive


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unpack(archive: Path, work: Path) -> Path:
    with tarfile.open(archive) as tar:
        # Debian 12's Python has no filters yet. The archive's hash is pinned.
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        tar.extractall(work)
    return work / f"unicorn-{UNICORN_VERSION}"


def _apply_edits(tree: Path) -> None:
    for name, old, new in _engine_edits.EDITS:
        path = tree / name
        text = path.read_text()
        if text.count(old) != 1:
            raise EngineBuildError(f"unicorn {UNICORN_VERSION} is not as expected: {name}")
        write_private(path, text.replace(old, new))
