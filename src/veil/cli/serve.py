# SPDX-License-Identifier: GPL-2.0-or-later
"""veil serve"""

from __future__ import annotations

from pathlib import Path

import click

from veil.cli.cvm_options import CvmOptions, cvm_options
from veil.cli.option_types import parse_address
from veil.cli.output import say, tell
from veil.cli.progress import Progress
from veil.cli.tool_options import ToolOptions, tool_options
from veil.errors import VeilError, describe
from veil.private_files import write_private

__all__ = ["serve"]


@click.command()
@cvm_options(services=True, users=True)
@tool_options
@click.option("--listen", default="127.0.0.1:0", show_default=True, metavar="HOST:PORT", help="Where users come to.")
@click.option("--fresh", is_flag=True, help="Boot without a snapshot: neither use nor keep one.")
@click.option(
    "--end-with-kernel", is_flag=True, help="End the CVM when its kernel ends, with all that nobody has fetched."
)
@click.option("--port-file", metavar="FILE", help="Write HOST:PORT there as soon as users can come.")
def serve(
    cvm: CvmOptions,
    tools: ToolOptions,
    listen: str,
    fresh: bool,
    end_with_kernel: bool,
    port_file: str | None,
) -> int:
    """Run a CVM and carry remote users' connections to its VeilMon, until Ctrl-C.

    This is the untrusted host's part: it sees ciphertext only. Users run `veil attest --connect HOST:PORT`.

    When the CVM's kernel ends (a panic, power off, reset), users are still carried to VeilMon and can fetch the log.
    """
    from veil.cvm import ConfidentialVM

    host, port = parse_address(listen)
    with (
        tools.opened() as looking_on,
        ConfidentialVM(cvm.configuration(), fresh=fresh, progress=Progress(), tools=looking_on) as vm,
    ):
        listener = vm.listen(host, port)
        try:
            address = f"{listener.address[0]}:{listener.address[1]}"
            say(f"users are carried to VeilMon from {address}")
            if port_file is not None:
                _write(Path(port_file), address + "\n")
            vm.serve(end_with_kernel=end_with_kernel, on_kernel_end=_tell_kernel_end)
        finally:
            listener.close()
    return 0


def _tell_kernel_end(error: VeilError) -> None:
    tell(f"veil: the CVM's kernel ended ({error}); what its log holds can still be fetched; Ctrl-C ends the CVM")


def _write(place: Path, text: str) -> None:
    try:
        write_private(place, text)
    except OSError as error:
        raise VeilError(f"cannot write {place}: {describe(error)}") from error
