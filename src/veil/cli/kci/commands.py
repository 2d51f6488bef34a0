# SPDX-License-Identifier: GPL-2.0-or-later
"""veil kci"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from veil.cli.checks import failures_are_1
from veil.cli.connection import connected, connection_options
from veil.cli.output import emit_json, say_all
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.printable import printable

if TYPE_CHECKING:
    from veil.formats.kci_status import KciStatus, ModuleStatus

__all__ = ["kci"]

#: Of a kind of patches, the symbols that are named; --json has all of them.
_SYMBOLS = 5


@click.group()
def kci() -> None:
    """What VeilS-KCI says of the code that a CVM's kernel runs.

    \b
      veil serve --kci on --listen 127.0.0.1:7700 &
      veil kci status --connect 127.0.0.1:7700 --software --measurement $(veil measure --kci on)
    """


@kci.command()
@failures_are_1
@connection_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with all symbols.")
def status(as_json: bool, **connection: Any) -> int:
    """Attest a CVM, then say whether its kernel is locked down, what it has patched since, and which modules it runs.

    For readers and owners of the CVM. What was refused stands in the protected log as well (`veil logs`), signed and
    in its place among the kernel's own records; here are counts, and the newest lines.

    Exit status: 0, whatever it says; 1 not verified; 125 there was nothing that could be verified.
    """
    from veil.remote.kci.status import read_status

    with connected(**connection) as (client, believed):
        found = read_status(client, believed)
    if as_json:
        emit_json(asdict(found))
    else:
        say_all(status_lines(found))
    return 0


def status_lines(found: KciStatus) -> Iterator[str]:
    """For people."""
    yield _state(found)
    if found.locked_ns is not None:
        yield f"  text       {_pages(found.text_pages)}, read-only data {_pages(found.read_only_pages)}"
        yield f"  explained  {_counts(found.explained) or 'nothing'} (sites that were not as measured at lock-down)"
    if found.patches:
        yield "patches of the kernel's own that were allowed since:"
        width = max(map(len, found.patches))
        for kind, symbols in sorted(found.patches.items()):
            yield f"  {printable(kind):<{width}}  {sum(symbols.values()):>8}  {_most(symbols)}"
    if found.writable:
        yield f"stores to what the policy lets the kernel write: {_counts(found.writable)}"
    run = len(found.modules) + found.modules_left_out
    yield f"modules: {run} run, {found.refused} {'was' if found.refused == 1 else 'were'} refused"
    if found.modules_left_out:
        yield f"  the newest {len(found.modules)} of them are:"
    yield from map(_module, found.modules)
    yield f"violations: {found.violations}"
    if found.words:
        yield f"what was refused, the newest {len(found.words)} last:"
        yield from (f"  {printable(words)}" for words in found.words)


def _state(found: KciStatus) -> str:
    from veil.formats.kci_settings import OFF
    from veil.remote.log.findings import machine_text

    if found.locked_ns is not None:
        return f"locked down {machine_text(found.locked_ns)} after the launch, mode {found.mode}"
    if found.mode == OFF:
        return "not locked down: this CVM was launched with --kci off, and its kernel may run any code"
    return f"NOT LOCKED DOWN, mode {found.mode}: lock-down was refused, or the measured init has not come to it yet"


def _module(module: ModuleStatus) -> str:
    version = f" {printable(module.version)}" if module.version else ""
    state = "" if module.live else ", not started yet"
    signer = f"signed by {printable(module.signer)}" if module.signer else "the policy lists its hash"
    code = _pages(module.text // PAGE_SIZE)
    return f"  {printable(module.name)}{version}: {code} of code, {signer}{state}; SHA-256 {printable(module.sha256)}"


def _pages(count: int) -> str:
    return f"{count} page{'' if count == 1 else 's'}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{printable(kind)} {count}" for kind, count in sorted(counts.items()))


def _most(symbols: Mapping[str, int]) -> str:
    """The symbols with the most of them."""
    first = sorted(symbols.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{printable(name)} {count}" for name, count in first[:_SYMBOLS])
    more = len(first) - _SYMBOLS
    return f"{shown}, {more} more symbol{'' if more == 1 else 's'}" if more > 0 else shown
