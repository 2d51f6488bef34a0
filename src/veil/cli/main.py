# SPDX-License-Identifier: GPL-2.0-or-later
"""The command group, and how errors become one line and a status."""

from __future__ import annotations

import importlib
import os
import sys
import traceback

# numpy starts a thread a core for algebra that nothing here does; they would only take time from the guest.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import click

from veil.cli.exit_statuses import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_PIPE, status_of
from veil.cli.output import OutputError, checked_stdout, finish, give_up, keep_descriptors, tell
from veil.cli.signals import end_cleanly

__all__ = ["main"]

_COMPLETION = "_VEIL_COMPLETE"
#: where each command is, by its name
_COMMANDS = {
    "run": "veil.cli.run",
    "shell": "veil.cli.shell",
    "boot": "veil.cli.boot",
    "gdb": "veil.cli.gdb",
    "serve": "veil.cli.serve",
    "attest": "veil.cli.attest",
    "measure": "veil.cli.measure",
    "verify": "veil.cli.verify",
    "logs": "veil.cli.log.commands",
    "kci": "veil.cli.kci.commands",
    "key": "veil.cli.key",
    "enclave": "veil.cli.enc.commands",
    "inspect": "veil.cli.inspect",
    "doctor": "veil.cli.doctor",
    "cache": "veil.cli.cache",
    "demo": "veil.cli.demo.command",
}


class _Commands(click.Group):
    """Each command is imported when it is asked for: none is to wait for what another one imports."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(_COMMANDS[cmd_name]), cmd_name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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
      veil run --kci on -- CMD          the same with a kernel that runs verified code only
      veil kci status ...               what that kernel patched, which modules it runs, what was refused
      veil enclave build PROGRAM        an enclave of a Linux program as it is
      veil key                          the fingerprint by which others let you read their logs
      veil inspect --png map.png        domains, VMSAs, and who may touch or execute which page
      veil doctor                       what this computer has and lacks

    Exit status: that of the guest's command (run, shell); 1 not verified, 3 verified with findings that mean trouble;
    2 wrong usage; 125 if Veil failed; 126 or 127 if the guest has no such program; 130 after Ctrl-C; 141 if the pipe
    that the output goes to was closed.
    """


def main() -> None:
    """Entry point: errors are one line on stderr."""
    keep_descriptors()
    if _COMPLETION in os.environ:
        veil.main(prog_name="veil", complete_var=_COMPLETION)
    try:
        status = _run()
        finish()
    except OutputError as error:
        give_up()
        # The reader of a pipe closed it: it has enough, and knows.
        if error.status != EXIT_PIPE:
            tell(f"veil: {error}")
        status = error.status
    sys.exit(status)


def _run() -> int:
    """The command's exit status. Raises OutputError."""
    from veil.errors import VeilError

    end_cleanly()
    try:
        # Not `veil.main`: it has an opinion of its own about a closed pipe.
        with checked_stdout(), veil.make_context("veil", sys.argv[1:]) as context:
            status = veil.invoke(context)
    except VeilError as error:
        tell(f"veil: {error}")
        return status_of(error)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        _tell_usage(error)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        tell("veil: interrupted")
        return EXIT_INTERRUPTED
    except OutputError:
        raise
    except BrokenPipeError as error:
        raise OutputError(error) from error
    except Exception as error:
        return _tell_unexpected(error)
    return status if isinstance(status, int) else 0


def _tell_usage(error: click.ClickException) -> None:
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        for line in error.format_message().splitlines():
            tell(line)
        return
    context = error.ctx if isinstance(error, click.UsageError) else None
    see = f" (see {context.command_path} --help)" if context is not None else ""
    tell(f"veil: {error.format_message().rstrip('.')}{see}")


def _tell_unexpected(error: Exception) -> int:
    """A full disk and the like in a line; a fault of ours with its trace, and not with a verdict's status."""
    from veil.errors import describe

    if isinstance(error, OSError) and error.strerror:
        tell(f"veil: {describe(error)}{f': {error.filename}' if error.filename is not None else ''}")
    else:
        for line in traceback.format_exception(error):
            for part in line.splitlines():
                tell(part)
    return EXIT_FAILURE
