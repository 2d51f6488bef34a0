# SPDX-License-Identifier: GPL-2.0-or-later
"""Kinds of options: times, addresses, several as one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from veil.errors import VeilError

__all__ = ["SECONDS", "SOME_SECONDS", "Function", "options", "parse_address"]


class _Seconds(click.FloatRange):
    """Numbers that there is a clock for."""

    name = "seconds"

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
    """HOST:PORT; raises VeilError."""
    host, _, port = text.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 0xFFFF:
        raise VeilError(f"{text!r} is not an address: write HOST:PORT")
    return host.strip("[]"), int(port)
