# SPDX-License-Identifier: GPL-2.0-or-later
"""python -m fuzz.guided TARGET FINDINGS LIBFUZZER-ARGUMENT...: one target under atheris, in a process of its own.

Findings do not end it, so that one known mistake does not hide the next: each is written once for each place in the
source, and named on standard output. What ends the process (a crash in native code, an endless loop) libFuzzer writes.
Standard output also has how many inputs there were so far, once a second (`fuzz.progress`).
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import atheris

#: tomllib reads the policies.
_INSTRUMENTED = [
    "veil.formats",
    "veil.remote",
    "veil.services.kci",
    "veil.services.enc",
    "veil.snp.guest_requests",
    "veil.guest.igvm",
    "veil.image.igvm_image",
    "veil.image.igvm_parameters",
    "tomllib",
]
# What is imported before this is not instrumented.
with atheris.instrument_imports(include=_INSTRUMENTED, enable_loader_override=False):
    from fuzz.progress import PULSE
    from fuzz.target import SLOW, examine
    from fuzz.targets import TARGETS

__all__ = ["main"]


def _slow_as_it_is(name: str, path: Path) -> bool:
    """Instrumentation makes several times as slow."""
    command = [sys.executable, "-m", "fuzz", "--target", name, "--again", str(path)]
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode != 0


def main() -> None:
    """Does not return: libFuzzer ends the process."""
    target, folder = TARGETS[sys.argv[1]], Path(sys.argv[2])
    seen: set[str] = set()
    inputs, told = 0, 0.0

    def one_input(data: bytes) -> None:
        nonlocal inputs, told
        if time.monotonic() > told + 1:
            told = time.monotonic()
            print(f"{PULSE}{inputs}", flush=True)
        inputs += 1
        finding = examine(target, data)
        if finding is None or finding.place in seen:
            return
        path = folder / hashlib.sha256(data).hexdigest()[:20]
        path.write_bytes(data)
        if finding.place == SLOW and not _slow_as_it_is(target.name, path):
            path.unlink()
            return
        seen.add(finding.place)
        print(f"{target.name}: {finding.what} ({finding.place}): {path}", flush=True)

    atheris.Setup([sys.argv[0], *sys.argv[3:]], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
