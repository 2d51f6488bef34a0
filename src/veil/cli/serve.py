# SPDX-License-Identifier: GPL-2.0-or-later
"""veil serve"""

from __future__ import annotations

from pathlib import Path

import click

from veil.cli.common import Progress, cvm_options, owners, parse_address, readers, services_options, user_options
from veil.cli.output import say
from veil.errors import VeilError, describe
from veil.private_files import write_private

__all__ = ["serve"]


@click.command()
@cvm_options
@services_options
@user_options
@click.option("--listen", default="127.0.0.1:0", show_default=True, metavar="HOST:PORT", help="Where users come to.")
@click.option("--fresh", is_flag=True, help="Boot anew: neither use nor keep a snapshot.")
@click.option("--port-file", metavar="FILE", help="Write HOST:PORT there as soon as users can come.")
def serve(
    memory: str,
    vcpus: int,
    kernel: str | None,
    no_monitor: bool,
    log_memory: str,
    log_full: str,
    driver_options: str,
    owner: tuple[str, ...],
    reader: tuple[str, ...],
    listen: str,
    fresh: bool,
    port_file: str | None,
) -> int:
    """Run a CVM and carry remote users' connections to its VeilMon, until Ctrl-C.

    This is the untrusted host's part: it sees ciphertext only. Users run `veil attest --connect HOST:PORT`.
    """
    from veil.cvm import ConfidentialVM, parse_size
    from veil.image.launch_image import protected_services

    host, port = parse_address(listen)
    with ConfidentialVM(
        memory,
        vcpus,
        kernel=kernel,
        monitor=not no_monitor,
        owners=owners(owner),
        readers=readers(reader),
        services=protected_services(log_memory=parse_size(log_memory), log_full=log_full),
        driver_options=driver_options,
        fresh=fresh,
        progress=Progress(),
    ) as vm:
        listener = vm.listen(host, port)
        try:
            address = f"{listener.address[0]}:{listener.address[1]}"
            say(f"users are carried to VeilMon from {address}")
            if port_file is not None:
                _write(Path(port_file), address + "\n")
            vm.serve()
        finally:
            listener.close()
    return 0


def _write(place: Path, text: str) -> None:
    try:
        write_private(place, text)
    except OSError as error:
        raise VeilError(f"cannot write {place}: {describe(error)}") from error
