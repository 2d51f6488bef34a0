# SPDX-License-Identifier: GPL-2.0-or-later
"""The runtime as an ordinary process of this computer: programs are tried in a moment, and nothing is protected."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from tests.services.enc.believing import BELIEVING_FLAGS
from veil.cache import Cache
from veil.guest.enclaves.build import build_enclave
from veil.guest.enclaves.image import EnclaveImage
from veil.guest.enclaves.manifest import Manifest
from veil.guest.enclaves.runtime.build import RUNTIME_FLAGS
from veil.guest.enclaves.trusted_files import ComputerFiles

__all__ = ["ANYTHING", "EVERY_CALL", "Lie", "NativeRuntime", "compile_program"]

_HERE = Path(__file__).parent / "native"
#: As enclaves have it, but for a third of the compiler's time.
_FLAGS = (*RUNTIME_FLAGS, "-O1")
#: All that a test may need: the kernel outside is this computer's.
ANYTHING: dict[str, object] = {
    "memory": "128M",
    "threads": 16,
    "arguments": {"outside": True},
    "environment": {"outside": ["*"]},
    "files": {"pass": ["/"]},
    "calls": {"allow": ["network", "identity"]},
}


def compile_program(place: Path, text: str, *flags: str) -> Path:
    """A C program."""
    source = place / "program.c"
    source.write_text(text)
    command = ["cc", "-O1", "-pthread", "-o", str(place / "program"), str(source), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return place / "program"


#: Instead of a system call's number: each one, from one `sync` to the next, but `write`.
EVERY_CALL = 4095


@dataclass(frozen=True)
class Lie:
    """What a hostile kernel does about one system call, each time or only the first time after a `sync`."""

    call: int
    result: int | None = None
    """It does nothing and answers this; None: it does what it is asked for."""
    once: bool = False
    put: tuple[tuple[int, int, int, int], ...] = ()
    """Argument, offset, bytes, value: written where the argument points to."""
    later: tuple[int, int, int, int] | None = None
    """The same, written when the runtime has read the place once."""

    def variables(self) -> dict[str, str]:
        """As `native/outside.c` hears it."""
        said = {"LIE_CALL": str(self.call)}
        if self.result is not None:
            said["LIE_RESULT"] = str(self.result & (1 << 64) - 1)
        if self.once:
            said["LIE_ONCE"] = "1"
        for number, put in enumerate(self.put):
            said[f"LIE_PUT{number}"] = ",".join(map(str, put))
        if self.later is not None:
            said["LIE_LATER"] = ",".join(map(str, self.later))
        return said


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[str]:
    """A name for what is made, which is there under its own when it is whole."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    yield str(new)
    new.replace(path)


class NativeRuntime:
    """`native/`, linked with the runtime's own source."""

    def __init__(self, place: Path, units: Mapping[str, str] | None = None) -> None:
        """`units`: C files with another text than the runtime's own has, by name; the others are compiled once.

        `place` may be other processes' too: what is there is whole, and named by what it is made from.
        """
        self.place = place
        source = Path(str(files("veil.guest.enclaves.runtime"))) / "src"
        texts = {path.name: path.read_text() for path in (*source.glob("*.c"), source / "memory_access.S")}
        changed = dict(units or {})
        texts |= {path.name: path.read_text() for path in (*_HERE.glob("*.c"), _HERE / "entry.S")} | changed
        del texts["floating_point.c"]
        objects = [str(self._compile(name, text, source, name in changed)) for name, text in sorted(texts.items())]
        self.program = place / f"native-{hashlib.sha256(repr(objects).encode()).hexdigest()[:16]}"
        flags = ["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", f"-Wl,-T,{source / 'runtime.ld'}"]
        if not self.program.exists():
            with _replacing(self.program) as new:
                self._cc([*flags, "-o", new, *objects])

    def _compile(self, name: str, text: str, source: Path, changed: bool) -> Path:
        made = self.place / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}-{name}.o"
        if not made.exists():
            kind = "assembler-with-cpp" if name.endswith(".S") else "c"
            # The assembler's and the native parts' own folders, for what they include by a path.
            include = [f"-I{source}", "-iquote", str(_HERE if (_HERE / name).exists() else source)]
            with _replacing(made) as new:
                self._cc([*(BELIEVING_FLAGS if changed else _FLAGS), *include, "-c", "-o", new, "-x", kind, "-"], text)
        return made

    @staticmethod
    def _cc(arguments: list[str], text: str = "") -> None:
        done = subprocess.run(["cc", *arguments], input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def build(self, program: Path | str, manifest: dict[str, object] | None = None) -> EnclaveImage:
        """An enclave of a program of this computer."""
        return build_enclave(Cache(), ComputerFiles(), str(program), Manifest.of(manifest or ANYTHING))

    def run(
        self,
        image: EnclaveImage,
        *arguments: str,
        stdin: bytes = b"",
        environment: dict[str, str] | None = None,
        directory: Path | None = None,
        lie: Lie | None = None,
        secret: str | None = None,
        late: int = 0,
    ) -> subprocess.CompletedProcess[bytes]:
        """`arguments`: from argv[0] on. `secret`: NAME=VALUE that the service has, when it was asked `late` times."""
        file = self.place / f"{image.measurement.hex()[:16]}.enclave"
        if not file.exists():
            with _replacing(file) as new:
                Path(new).write_bytes(image.pack())
        environment = dict(environment or {})
        if lie:
            environment |= lie.variables()
        if secret is not None:
            environment |= {"SECRET": secret, "SECRET_LATE": str(late)}
        return self._start([str(file), *arguments], stdin, environment, directory)

    def _start(
        self, arguments: Sequence[str], stdin: bytes, environment: dict[str, str], directory: Path | None
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [str(self.program), *arguments],
            input=stdin, capture_output=True, timeout=30, env=environment, cwd=directory, check=False,
        )  # fmt: skip
