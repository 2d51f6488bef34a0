# SPDX-License-Identifier: GPL-2.0-or-later
"""The runtime as an ordinary process of this computer: programs are tried in a moment, and nothing is protected."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from veil.cache import Cache
from veil.guest.enclaves.build import build_enclave
from veil.guest.enclaves.image import EnclaveImage
from veil.guest.enclaves.manifest import Manifest
from veil.guest.enclaves.runtime.build import RUNTIME_FLAGS
from veil.guest.enclaves.trusted_files import ComputerFiles

__all__ = ["ANYTHING", "NativeRuntime", "compile_program"]

_HERE = Path(__file__).parent / "native"
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


class NativeRuntime:
    """`native/`, linked with the runtime's own source."""

    def __init__(self, place: Path) -> None:
        self.place = place
        source = Path(str(files("veil.guest.enclaves.runtime"))) / "src"
        units = [path for path in sorted(source.glob("*.c")) if path.name != "floating_point.c"]
        flags = ["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", f"-Wl,-T,{source / 'runtime.ld'}"]
        parts = [*units, source / "memory_access.S", _HERE / "native.c", _HERE / "entry.S"]
        command = ["cc", *RUNTIME_FLAGS, *flags, f"-I{source}", "-o", str(place / "native"), *map(str, parts)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
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
        lie: tuple[int, int] | None = None,
        secret: str | None = None,
        late: int = 0,
    ) -> subprocess.CompletedProcess[bytes]:
        """`arguments`: from argv[0] on. `lie`: a system call that the kernel does not do, and its answer. `secret`:
        NAME=VALUE that the service has, when it was asked `late` times."""
        file = self.place / "image.enclave"
        file.write_bytes(image.pack())
        environment = dict(environment or {})
        if lie:
            environment |= {"LIE_CALL": str(lie[0]), "LIE_RESULT": str(lie[1])}
        if secret is not None:
            environment |= {"SECRET": secret, "SECRET_LATE": str(late)}
        return self._start([str(file), *arguments], stdin, environment, directory)

    def _start(
        self, arguments: Sequence[str], stdin: bytes, environment: dict[str, str], directory: Path | None
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [str(self.place / "native"), *arguments],
            input=stdin, capture_output=True, timeout=60, env=environment, cwd=directory, check=False,
        )  # fmt: skip
