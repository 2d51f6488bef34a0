# SPDX-License-Identifier: GPL-2.0-or-later
"""Kinds of options: times, addresses, digests, several as one; and the error for a value that is not one."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from veil.errors import VeilError

__all__ = ["SECONDS", "SOME_SECONDS", "Function", "WrongValue", "hex_bytes", "options", "parse_address", "parse_time"]


class WrongValue(VeilError):
    """What was given as an option's value is not one: wrong usage, as an option that does not exist."""


class _Seconds(click.FloatRange):
    """Numbers that there is a clock for."""

    name = "number of seconds"

    def __init__(self, *, above_zero: bool = False) -> None:
        super().__init__(min=0, min_open=above_zero, max=1e9)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """As a float."""
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return seconds


#: The type of an option that says how long.
SECONDS = _Seconds()
SOME_SECONDS = _Seconds(above_zero=True)

Function = TypeVar("Function", bound=Callable[..., Any])


def options(*declared: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """Several of click's options as one decorator; they come in help in this order."""

    def decorate(function: Function) -> Function:
        for option in reversed(declared):
            function = option(function)
        return function

    return decorate


def parse_address(text: str) -> tuple[str, int]:
    """HOST:PORT; raises WrongValue."""
    host, _, port = text.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 0xFFFF:
        raise WrongValue(f"{text!r} is not an address: write HOST:PORT")
    return host.strip("[]"), int(port)


def hex_bytes(text: str, length: int, what: str) -> bytes:
    """Hexadecimal digits as bytes; raises WrongValue."""
    if not re.fullmatch(r"[0-9a-fA-F]+", text) or len(text) != 2 * length:
        raise WrongValue(f"{what} must be {2 * length} hexadecimal digits")
    return bytes.fromhex(text)


def parse_time(text: str | None) -> datetime.datetime | None:
    """ISO 8601; without a zone it is UTC. Raises WrongValue."""
    if text is None:
        return None
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise WrongValue(f"--at {text!r} is not a time: write 2026-06-01, or 2026-06-01T12:00:00+00:00") from error
    return when if when.tzinfo is not None else when.replace(tzinfo=datetime.UTC)
