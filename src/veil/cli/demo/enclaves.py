# SPDX-License-Identifier: GPL-2.0-or-later
"""The demonstration's second part: Debian's own programs run shielded from the kernel, as a remote user can tell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from veil.cli.demo.guest import attested_client, in_guest
from veil.cli.output import raw, say
from veil.errors import VeilError
from veil.formats.printable import printable
from veil.private_files import write_new

if TYPE_CHECKING:
    from veil.cvm import ConfidentialVM
    from veil.formats.launch_digest import LaunchLog

__all__ = ["build_enclaves", "show_enclaves"]

_BUSYBOX, _SQLITE = "busybox", "sqlite3"
#: program -> Debian's package
_PACKAGES = {_BUSYBOX: "busybox-static", _SQLITE: "sqlite3"}
_QUERY = "create table t(a); insert into t values (6), (7); select 'shielded', max(a) * min(a) from t"

#: until the enclave is finished and runs
_START = """
setsid {} >/dev/null 2>&1 &
until grep -q 'enclaves 1 ' /dev/veil; do sleep 0.1; done
before=$(cat /dev/veil)
until [ "$(cat /dev/veil)" != "$before" ]; do sleep 0.1; done
"""


def build_enclaves(directory: Path) -> dict[str, Path]:
    """Program -> its image, which is made now: Debian's files as they are. Raises VeilError."""
    from veil.cache import Cache
    from veil.guest.enclaves.build import build_enclave
    from veil.guest.enclaves.manifest import Manifest
    from veil.guest.enclaves.trusted_files import DebianFiles

    cache, manifest = Cache(), Manifest(memory=16 << 20, threads=1, arguments_outside=True)
    found = {}
    for program, package in _PACKAGES.items():
        image = build_enclave(cache, DebianFiles(cache, [package]), program, manifest)
        found[program] = directory / f"{program}.enclave"
        write_new(found[program], image.pack())
    return found


def show_enclaves(vm: ConfidentialVM, expected: LaunchLog, images: dict[str, Path]) -> None:
    """Of a CVM that makes enclaves. Raises VeilError if anything is not as it is to be shown."""
    from veil.cvm.enclaves import enclave_command, image_place
    from veil.guest.enclaves.image import EnclaveImage
    from veil.remote.enc.enclaves import open_enclaves

    say("Debian's own programs, not a byte of them changed, in memory that the kernel cannot reach")
    _run(vm, images[_BUSYBOX], "a static busybox: 42", "sh", "-c", "echo a static busybox: $((6 * 7))")
    _run(vm, images[_SQLITE], "shielded|42", ":memory:", _QUERY)
    image = images[_BUSYBOX]
    waits = " ".join(enclave_command(image, ["sleep", "1000"]))
    in_guest(vm, _START.format(waits))
    measurement = EnclaveImage.parse(image.read_bytes(), image_place(image)).measurement
    with attested_client(vm, expected) as (client, trust):
        enclaves = open_enclaves(client, trust)
        said = [enclaves.attest(item.number) for item in enclaves.all() if item.state == "ready"]
        if [item.measurement for item in said] != [measurement]:
            raise VeilError("the enclave that runs is not the one that was built")
        say(f"$ veil enclave attest {image.name}")
        say(f"enclave {said[0].enclave}: {measurement.hex()}")
        enclaves.provision(measurement, b"key", b"for this enclave alone")
        say(f"$ veil enclave provision {image.name} key")


def _run(vm: ConfidentialVM, image: Path, expected: str, *arguments: str) -> None:
    say(f"$ veil run --enclave {image.name} -- {' '.join(arguments)}")
    result = vm.run_enclave(image, arguments, stderr=lambda data: raw(2, data))
    found = result.stdout.decode(errors="replace").strip()
    say(printable(found))
    if result.exit_status or found != expected:
        raise VeilError(f"the enclave of {image.name} ended with status {result.exit_status}")
