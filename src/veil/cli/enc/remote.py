# SPDX-License-Identifier: GPL-2.0-or-later
"""veil enclave attest, veil enclave provision"""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from veil.cli.checks import failures_are_1
from veil.cli.connection import connected, connection_options
from veil.cli.enc.runtime import warn_of_runtime
from veil.cli.enc.secrets import check_name, read_secret
from veil.cli.files import read_image
from veil.cli.output import emit_json, say
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.printable import printable
from veil.formats.sizes import format_size

__all__ = ["attest", "provision"]

_MEASUREMENT = re.compile("[0-9a-fA-F]{96}")


@click.command()
@click.argument("image", metavar="[IMAGE|HEX]", required=False)
@failures_are_1
@connection_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def attest(image: str | None, as_json: bool, **connection: Any) -> int:
    """Attest a CVM, then the enclaves that run in it: their measurements, under the key that the report binds.

    With an image (X.enclave) or a measurement (96 hexadecimal digits): only those of this measurement. For readers and
    owners of the CVM.

    Exit status: 0; 1 not verified, or no such enclave runs; 125 there was nothing that could be verified.
    """
    from veil.remote.enc.enclaves import open_enclaves

    wanted = None
    if image is not None:
        wanted = bytes.fromhex(image) if _is_measurement(image) else read_image(image).measurement
    with connected(**connection) as (client, trust):
        found = open_enclaves(client, trust).running(wanted).values()
    if as_json:
        emit_json({"enclaves": [{**asdict(item), "measurement": said.measurement.hex()} for item, said in found]})
    else:
        for item, said in found:
            size = format_size(item.pages * PAGE_SIZE)
            threads = f"{item.slots} thread{'' if item.slots == 1 else 's'} at most"
            say(f"enclave {item.number}: {said.measurement.hex()}, {threads}, {size}")
        if not found:
            say("no enclave runs" if wanted is None else f"no enclave of measurement {wanted.hex()} runs")
    return 0 if found or wanted is None else 1


@click.command()
@click.argument("image", metavar="IMAGE|HEX")
@click.argument("name")
@click.argument("file", metavar="[FILE]", default="-")
@failures_are_1
@connection_options
def provision(image: str, name: str, file: str, **connection: Any) -> int:
    """Send a secret that only enclaves of one measurement get; from FILE, or from stdin.

    Their programs read it from /run/secrets/NAME, which the manifest must name (files.secrets). The CVM is attested
    first, and the secret goes through the channel to VeilS-ENC, past the kernel and the host. It is kept until the CVM
    ends; an empty one removes it. For owners of the CVM.

    \b
      veil enclave provision server.enclave tls-key key.pem --connect HOST:PORT --software --measurement DIGEST
    """
    from veil.remote.enc.enclaves import open_enclaves

    found = None
    if _is_measurement(image):
        measurement = bytes.fromhex(image)
    else:
        found = read_image(image)
        check_name(found, image, name)
        measurement = found.measurement
    secret = read_secret(file)
    with connected(**connection, needs="--owner") as (client, trust):
        enclaves = open_enclaves(client, trust)
        if found is not None and secret:
            warn_of_runtime(found, image)
        enclaves.provision(measurement, os.fsencode(name), secret)
    done = f"{len(secret)} bytes for" if secret else "removed, of"
    say(f"{printable(name)}: {done} enclaves of {measurement.hex()}")
    return 0


def _is_measurement(text: str) -> bool:
    return _MEASUREMENT.fullmatch(text) is not None and not Path(text).exists()
