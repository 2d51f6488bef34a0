# SPDX-License-Identifier: GPL-2.0-or-later
"""veil enclave inspect"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from veil.cli.enc.runtime import compare_runtime
from veil.cli.files import read_image
from veil.cli.output import emit_json, say, say_all
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.printable import printable
from veil.formats.sizes import format_size

if TYPE_CHECKING:
    from veil.formats.enclaves import Record
    from veil.guest.enclaves.image import EnclaveImage

__all__ = ["inspect"]


@click.command()
@click.argument("image", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(image: str, as_json: bool) -> int:
    """Show what an enclave's image holds, and what it will be allowed.

    The measurement is computed from what is in the file, not read from it; content that does not fit it is an error, as
    are rules that are not those of the manifest. Whether the runtime, which keeps the rules, is Veil's is shown.
    """
    found = read_image(image)
    ours, words = compare_runtime(found)
    if as_json:
        emit_json(
            {
                "measurement": found.measurement.hex(),
                "threads": found.layout.slots,
                "memory": found.layout.pool_pages * PAGE_SIZE,
                "records": [
                    {"kind": record.kind.name, "address": record.va, "pages": record.pages, "prot": _rights(record)}
                    for record in found.layout.records
                ],
                "files": {path: hashlib.sha256(data).hexdigest() for path, data in sorted(found.files.items())},
                "our_runtime": ours,
                "manifest": found.manifest,
            }
        )
    else:
        say(found.measurement.hex())
        say_all(_lines(found, words))
    return 0


def _lines(image: EnclaveImage, runtime: str) -> Iterator[str]:
    layout = image.layout
    yield f"threads: {layout.slots}; memory to map: {format_size(layout.pool_pages * PAGE_SIZE)}"
    yield f"entered at {layout.entry:#x}, events at {layout.vectors:#x}"
    yield f"runtime: {runtime}"
    yield "pages:"
    for record in layout.records:
        yield f"  {record.va:#016x}  {record.pages:>6}  {_rights(record)}  {record.kind.name.lower()}"
    yield f"trusted files: {len(image.files)}"
    for path, data in sorted(image.files.items()):
        yield f"  {printable(path)}: {len(data)} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}"
    yield "manifest, which all that it may do follows from:"
    yield from (f"  {printable(line)}" for line in image.manifest.splitlines())


def _rights(record: Record) -> str:
    return "".join(letter if record.prot & bit else "-" for bit, letter in ((1, "r"), (2, "w"), (4, "x")))
