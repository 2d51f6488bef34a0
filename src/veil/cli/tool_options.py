# SPDX-License-Identifier: GPL-2.0-or-later
"""The options of commands that run a CVM for tools that look on."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from veil.cli.option_types import Function, WrongValue, options
from veil.cli.output import tell

if TYPE_CHECKING:
    from veil.cvm.debugging import Debugging
    from veil.cvm.tools import Tool

__all__ = ["ToolOptions", "debugging", "tool_options"]

_OPTIONS = (
    click.option(
        "--trace",
        metavar="FILE",
        help="Write down what happens when (exits, VMPL switches, page state changes, SVSM calls, service requests), "
        "for Perfetto's viewer.",
    ),
    click.option(
        "--gdb",
        metavar="PORT|SOCKET[,wait]",
        help="Listen for gdb (`target remote`) on a port of this computer's own address, or at a path. wait: nothing "
        "runs before gdb says so.",
    ),
)


@dataclass(frozen=True)
class ToolOptions:
    """What the command line says of tools."""

    trace: str | None = None
    gdb: str | None = None

    @contextmanager
    def opened(self) -> Iterator[list[Tool]]:
        """The tools that were asked for, until the block ends. Raises VeilError."""
        tools: list[Tool] = []
        with ExitStack() as stack:
            if self.trace is not None:
                from veil.cvm.trace import Trace

                tools.append(stack.enter_context(Trace(Path(self.trace), tell)))
            if self.gdb is not None:
                tools.append(stack.enter_context(debugging(self.gdb)))
            yield tools


def debugging(text: str) -> Debugging:
    """PLACE[,wait]. Raises VeilError."""
    from veil.cvm.debugging import Debugging
    from veil.debugger import Place

    place, comma, how = text.partition(",")
    if comma and how != "wait":
        raise WrongValue(f"--gdb {text!r}: after the place there can be ,wait only")
    return Debugging(Place.parse(place), waits=bool(comma), say=tell)


def tool_options(function: Function) -> Function:
    """The command gets them as `tools`, a `ToolOptions`."""
    names = [item.name for item in fields(ToolOptions)]

    @functools.wraps(function)
    def command(*args: Any, **values: Any) -> Any:
        chosen = {name: values.pop(name) for name in names}
        return function(*args, tools=ToolOptions(**chosen), **values)

    return options(*_OPTIONS)(command)  # type: ignore[return-value]
