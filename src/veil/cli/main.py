# SPDX-License-Identifier: GPL-2.0-or-later
"""The command group, and how errors become one line and a status."""

from __future__ import annotations

import os
import sys

# numpy starts a thread a core for algebra that nothing here does; they would only take time from the guest.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import click

from veil.cli.attest import attest
from veil.cli.boot import boot
from veil.cli.cache import cache
from veil.cli.common import EXIT_FAILURE, EXIT_INTERRUPTED
from veil.cli.demo import demo
from veil.cli.doctor import doctor
from veil.cli.inspect import inspect
from veil.cli.logs import logs
from veil.cli.measure import measure
from veil.cli.run import run
from veil.cli.serve import serve
from veil.cli.shell import shell
from veil.cli.verify import verify

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="veil")
def veil() -> None:
    """Protected services for confidential VMs, on a software AMD SEV-SNP machine.

    A guest is a stock Debian kernel at VMPL 3 under the security monitor VeilMon at VMPL 0. The first command boots one
    (a few seconds); later ones resume it from a snapshot.

    \b
      veil run -- uname -a              run a command in the CVM
      veil shell                        an interactive shell in it
      veil boot --console               watch it boot
      veil attest --software            verify it from the digest of its image up to the channel's key
      veil measure                      the launch digest, computed without launching
      veil verify REPORT ...            verify a report, AMD's own ones too
      veil serve                        carry remote users' secure channels to it
      veil logs fetch ...               the kernel's audit records, out of its own reach
      veil inspect --png map.png        domains, VMSAs, and who may touch which page
      veil doctor                       what this computer has and lacks

    Exit status: the guest command's own; 125 if Veil failed; 130 after Ctrl-C.
    """


for _command in (run, shell, boot, serve, attest, measure, verify, logs, inspect, doctor, cache, demo):
    veil.add_command(_command)


def main() -> None:
    """Entry point: errors are one line on stderr."""
    from veil.errors import VeilError

    try:
        status = veil.main(standalone_mode=False)
    except VeilError as error:
        click.echo(f"veil: {error}", err=True)
        sys.exit(EXIT_FAILURE)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("veil: interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has enough.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        sys.exit(EXIT_FAILURE)
    sys.exit(status if isinstance(status, int) else 0)
