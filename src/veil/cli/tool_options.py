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

from veil.cli.option_types import Function, options
from veil.cli.output import tell

if TYPE_CHECKING:
    from veil.cvm.tools import Tool

__all__ = ["ToolOptions", "tool_options"]

_OPTIONS = (
    click.option(
        "--trace",
        metavar="FILE",
        help="Write down what happens when (exits, VMPL switches, page state changes, SVSM calls, service requests), "
        "for Perfetto's viewer.",
    ),
)


@dataclass(frozen=True)
class ToolOptions:
    """What the command line says of tools."""

    trace: str | None = None

    @contextmanager
    def opened(self) -> Iterator[list[Tool]]:
        """The tools that were asked for, until the block ends. Raises VeilError."""
        tools: list[Tool] = []
        with ExitStack() as stack:
            if self.trace is not None:
                from veil.cvm.trace import Trace

                tools.append(stack.enter_context(Trace(Path(self.trace), tell)))
            yield tools


def tool_options(function: Function) -> Function:
    """The command gets them as `tools`, a `ToolOptions`."""
    names = [item.name for item in fields(ToolOptions)]

    @functools.wraps(function)
    def command(*args: Any, **values: Any) -> Any:
        chosen = {name: values.pop(name) for name in names}
        return function(*args, tools=ToolOptions(**chosen), **values)

    return options(*_OPTIONS)(command)  # type: ignore[return-value]
