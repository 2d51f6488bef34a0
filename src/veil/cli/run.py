# SPDX-License-Identifier: GPL-2.0-or-later
"""veil run"""

from __future__ import annotations

import base64
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from veil.cli.cvm_options import CvmOptions, cvm_options
from veil.cli.enc.arguments import check_arguments
from veil.cli.enc.secrets import secrets_for, send_secrets
from veil.cli.files import read_image
from veil.cli.option_types import SECONDS, WrongValue
from veil.cli.output import Console, emit_json, raw, say
from veil.cli.progress import Progress
from veil.cli.tool_options import ToolOptions, tool_options
from veil.cli.until_off import run_until_off

__all__ = ["piped_stdin", "run"]


def _pair(text: str, what: str) -> tuple[str, str]:
    left, colon, right = text.partition(":")
    if not colon or not left or not right:
        raise WrongValue(f"{what} {text!r}: write it as {'HOST:GUEST' if what == '--file' else 'GUEST:HOST'}")
    return left, right


def piped_stdin() -> Iterator[bytes] | None:
    """Our stdin for the guest's command, unless it is a terminal: then `veil shell` is what is meant."""
    stream = sys.stdin
    if stream is None or stream.closed or stream.isatty():
        return None
    descriptor = stream.fileno()
    return iter(lambda: os.read(descriptor, 65536), b"")


# What comes after the command's name is the command's, be it with "-" or without.
@click.command(context_settings={"allow_interspersed_args": False})
@cvm_options(igvm=True)
@tool_options
@click.option("--file", "files", multiple=True, metavar="HOST:GUEST", help="Copy a file in before the command runs.")
@click.option("--get", "gets", multiple=True, metavar="GUEST:HOST", help="Copy a file out after it has run.")
@click.option(
    "--enclave",
    metavar="IMAGE",
    help="Run an enclave of this image (`veil enclave build`), with COMMAND as its arguments. Implies --enclaves.",
)
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    metavar="NAME=FILE",
    help="With --enclave: attest the CVM and send the enclave a secret, which it finds in /run/secrets/NAME.",
)
@click.option("--fresh", is_flag=True, help="Boot without a snapshot: neither use nor keep one.")
@click.option("--timeout", type=SECONDS, metavar="SECONDS", help="Kill the command after this time.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with outputs, status and times.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def run(
    cvm: CvmOptions,
    tools: ToolOptions,
    files: tuple[str, ...],
    gets: tuple[str, ...],
    enclave: str | None,
    secrets: tuple[str, ...],
    fresh: bool,
    timeout: float | None,
    as_json: bool,
    command: tuple[str, ...],
) -> int:
    """Run COMMAND in a confidential VM: its streams are ours, its exit status is ours.

    \b
      veil run -- uname -a
      veil run --file prog:/root/prog -- /root/prog arg
      echo hello | veil run -- sha256sum
      veil run --enclave busybox.enclave -- echo shielded
      veil run --enclave busybox.enclave --secret key=key.pem -- sha256sum /run/secrets/key
      veil run --igvm monitor.igvm

    What an IGVM file has takes no commands: its console is shown until it switches off, as by `veil boot --igvm`.

    Exit status: the command's, 128 + N after signal N; 127 if the guest has no such command, 126 if it is not a
    program; 125 if Veil failed, 2 for wrong usage, 130 after Ctrl-C.
    """
    from veil.cvm import ConfidentialVM
    from veil.cvm.enclaves import enclave_command, image_place

    if cvm.igvm is not None:
        if command or files or gets or enclave or secrets or timeout is not None or as_json:
            raise click.UsageError("nobody in an IGVM file takes commands or files: give --igvm FILE alone")
        return _run_igvm(cvm, tools)
    put, get = [_pair(item, "--file") for item in files], [_pair(item, "--get") for item in gets]
    image, to_send = None, dict[str, bytes]()
    if enclave is not None:
        image = read_image(enclave)
        check_arguments(image, enclave, command)
        to_send = secrets_for(image, enclave, secrets)
        cvm = replace(cvm, settings={**cvm.settings, "enclaves": True})
        command = enclave_command(Path(enclave), command)
        put.append((enclave, image_place(Path(enclave))))
    elif secrets:
        raise click.UsageError("--secret is for an enclave: give --enclave")
    elif not command:
        raise click.UsageError("what is to run? Give a command, or --enclave")
    start = time.monotonic()
    with (
        tools.opened() as looking_on,
        ConfidentialVM(cvm.configuration(), fresh=fresh, progress=Progress(quiet=as_json), tools=looking_on) as vm,
    ):
        for host_path, guest_path in put:
            vm.copy_in(host_path, guest_path)
        if image is not None:
            send_secrets(vm, image, to_send)
        ready = time.monotonic()
        if as_json:
            result = vm.run(command, stdin=piped_stdin(), timeout=timeout)
        else:
            result = vm.run(
                command,
                stdin=piped_stdin(),
                stdout=lambda data: raw(1, data),
                stderr=lambda data: raw(2, data),
                timeout=timeout,
            )
        done = time.monotonic()
        for guest_path, host_path in get:
            vm.copy_out(guest_path, host_path)
        if as_json:
            emit_json(
                {
                    "command": list(command),
                    "exit_status": result.exit_status,
                    "stdout": _text(result.stdout),
                    "stderr": _text(result.stderr),
                    "booted": vm.boot_seconds is not None,
                    "seconds": {"until_ready": round(ready - start, 3), "command": round(done - ready, 3)},
                    "launch_digest": vm.machine.secure_processor.measurement.hex(),
                }
            )
    return result.exit_status


def _run_igvm(cvm: CvmOptions, tools: ToolOptions) -> int:
    from veil.cvm import ConfidentialVM

    shown = Console(say)
    with tools.opened() as looking_on:
        vm = ConfidentialVM(cvm.configuration(), progress=Progress(), tools=looking_on)
        try:
            run_until_off(vm, shown)
        finally:
            shown.close()
            vm.close()
    return 0


def _text(data: bytes) -> str | dict[str, str]:
    """Text if it is text, else base64."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}
