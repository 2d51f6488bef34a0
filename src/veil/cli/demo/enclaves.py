# SPDX-License-Identifier: GPL-2.0-or-later
"""The demonstration's second part: Debian's own programs run shielded from the kernel, and one uses a secret."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from veil.cli.enc.secrets import send_secrets
from veil.cli.files import read_image
from veil.cli.output import raw, say
from veil.errors import VeilError
from veil.formats.printable import printable
from veil.private_files import write_new

if TYPE_CHECKING:
    from veil.cvm import ConfidentialVM

__all__ = ["BUSYBOX", "SECRET", "SQLITE", "build_enclaves", "show_enclaves"]

BUSYBOX, SQLITE = "busybox", "sqlite3"
#: the name of what the user sends
SECRET = "key"
#: program -> Debian's package
_PACKAGES = {BUSYBOX: "busybox-static", SQLITE: "sqlite3"}
_QUERY = "create table t(a); insert into t values (6), (7); select 'shielded', max(a) * min(a) from t"


def build_enclaves(directory: Path) -> dict[str, Path]:
    """Program -> its image, which is made now: Debian's files as they are. Raises VeilError."""
    from veil.cache import Cache
    from veil.guest.enclaves.build import build_enclave
    from veil.guest.enclaves.manifest import Manifest
    from veil.guest.enclaves.trusted_files import DebianFiles

    cache, manifest = Cache(), Manifest(memory=16 << 20, threads=1, arguments_outside=True, secrets=(SECRET,))
    found = {}
    for program, package in _PACKAGES.items():
        image = build_enclave(cache, DebianFiles(cache, [package]), program, manifest)
        found[program] = directory / f"{program}.enclave"
        write_new(found[program], image.pack())
    return found


def show_enclaves(vm: ConfidentialVM, images: dict[str, Path]) -> None:
    """Of a CVM that makes enclaves. Raises VeilError if anything is not as it is to be shown."""
    from veil.guest.enclaves.manifest import secret_path

    say("Debian's own programs, not a byte of them changed, in memory that the kernel cannot reach")
    busybox = images[BUSYBOX]
    _run(vm, busybox, "a static busybox: 42", "sh", "-c", "echo a static busybox: $((6 * 7))")
    _run(vm, images[SQLITE], "shielded|42", ":memory:", _QUERY)
    say("the user sends a key, which only this enclave gets; what it makes of it shows that it has it")
    key, place = secrets.token_bytes(32), secret_path(SECRET)
    send_secrets(vm, read_image(str(busybox)), {SECRET: key})
    expected = f"{hashlib.sha256(key).hexdigest()}  {place}"
    _run(vm, busybox, expected, "sha256sum", place, options=f" --secret {SECRET}={SECRET}.bin")


def _run(vm: ConfidentialVM, image: Path, expected: str, *arguments: str, options: str = "") -> None:
    say(f"$ veil run --enclave {image.name}{options} -- {' '.join(arguments)}")
    result = vm.run_enclave(image, arguments, stderr=lambda data: raw(2, data))
    found = result.stdout.decode(errors="replace").strip()
    say(printable(found))
    if result.exit_status or found != expected:
        raise VeilError(f"the enclave of {image.name} ended with status {result.exit_status}, not as expected")
