# SPDX-License-Identifier: GPL-2.0-or-later
"""What the commands share: options, progress, errors, exit codes."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from veil.cli.output import EXIT_FAILURE, tell
from veil.errors import VeilError

__all__ = [
    "EXIT_INTERRUPTED",
    "SECONDS",
    "SOME_SECONDS",
    "Progress",
    "cvm_options",
    "owners",
    "parse_address",
    "readers",
    "services_options",
    "status_of",
    "user_options",
]

EXIT_INTERRUPTED = 130

_MOST_USERS = 8


def status_of(error: VeilError) -> int:
    """A command that the guest cannot start has a status of its own; all else is `EXIT_FAILURE`."""
    from veil.guest.errors import CommandNotStarted

    return error.exit_status if isinstance(error, CommandNotStarted) else EXIT_FAILURE


class _Seconds(click.FloatRange):
    """Numbers that there is a clock for."""

    name = "seconds"

    def __init__(self, *, above_zero: bool = False) -> None:
        super().__init__(min=0, min_open=above_zero, max=1e9)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """As a float."""
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return seconds


#: The type of an option that says how long.
SECONDS = _Seconds()
SOME_SECONDS = _Seconds(above_zero=True)

_Function = TypeVar("_Function", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--memory", default="512M", show_default=True, metavar="SIZE", help="Guest memory: 512M, 4G, ..."),
    click.option("--vcpus", default=1, show_default=True, type=click.IntRange(1, 4), help="Virtual CPUs."),
    click.option(
        "--kernel", metavar="PATH|SERIES", help="Another kernel: a bzImage or vmlinux, or a series of Debian's (6.1)."
    ),
    click.option("--no-monitor", is_flag=True, help="Boot the kernel at VMPL 0, without VeilMon."),
)


_SERVICES_OPTIONS = (
    click.option("--log-memory", default="16M", show_default=True, metavar="SIZE", help="VeilS-LOG's memory."),
    click.option(
        "--log-full",
        type=click.Choice(["halt", "drop"]),
        default="halt",
        show_default=True,
        help="No room in it: programs wait for `veil logs ack`, or records are dropped and counted.",
    ),
    click.option(
        "--driver-options",
        default="",
        metavar="TEXT",
        help="Module parameters of the driver, as in 'log_intent=exec,module log_heartbeat=500'.",
    ),
)


def cvm_options(function: _Function) -> _Function:
    """The options that say which CVM is meant."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def services_options(function: _Function) -> _Function:
    """The protected services' settings, which are measured."""
    for option in reversed(_SERVICES_OPTIONS):
        function = option(function)
    return function


_USER_OPTIONS = (
    click.option(
        "--owner",
        multiple=True,
        metavar="HEX|none",
        help="SHA-256 of an owner's public key (`veil key`): reads the log, makes room in it, sets rules. By default "
        "this installation's user.",
    ),
    click.option(
        "--reader",
        multiple=True,
        metavar="HEX",
        help="SHA-256 of a public key (`veil key`) whose holder may read the log, and nothing else.",
    ),
)


def user_options(function: _Function) -> _Function:
    """The options that say which users are more than strangers to the CVM; measured."""
    for option in reversed(_USER_OPTIONS):
        function = option(function)
    return function


def owners(values: tuple[str, ...]) -> tuple[bytes, ...]:
    """The owners' fingerprints that the options name; raises VeilError."""
    from veil.installation import owner_fingerprint

    if not values:
        return (owner_fingerprint(),)
    if values == ("none",):
        return ()
    return _fingerprints(values, '--owner must be 64 hexadecimal digits (`veil key`), or "none"')


def readers(values: tuple[str, ...]) -> tuple[bytes, ...]:
    """The readers' fingerprints that the options name; raises VeilError."""
    return _fingerprints(values, "--reader must be 64 hexadecimal digits (`veil key`)")


def _fingerprints(values: tuple[str, ...], words: str) -> tuple[bytes, ...]:
    try:
        found = tuple(bytes.fromhex(value) for value in values)
    except ValueError:
        raise VeilError(words) from None
    if any(len(item) != 32 for item in found):
        raise VeilError(words)
    if len(found) > _MOST_USERS:
        raise VeilError(f"{len(found)} keys are too many: a CVM has at most {_MOST_USERS} owners and as many readers")
    return found


def parse_address(text: str) -> tuple[str, int]:
    """HOST:PORT; raises VeilError."""
    host, _, port = text.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 0xFFFF:
        raise VeilError(f"{text!r} is no address: write HOST:PORT")
    return host.strip("[]"), int(port)


class Progress:
    """Says on stderr what takes long: a line a step, with the seconds of the step before."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._start = time.monotonic()

    def __call__(self, message: str) -> None:
        if not self._quiet:
            tell(f"veil: {message}")
