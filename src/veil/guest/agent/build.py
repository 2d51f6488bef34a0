# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest agent's program."""

from importlib.resources import files
from pathlib import Path

from veil.cache import Cache
from veil.guest.static_program import build_program, program_at_hand, program_compiler

__all__ = ["agent_at_hand", "agent_compiler", "agent_sources", "build_agent"]

_KIND = "agent"


def agent_sources() -> dict[str, bytes]:
    """The agent's C files by name."""
    place = files("veil.guest.agent").joinpath("src")
    return {item.name: item.read_bytes() for item in place.iterdir() if item.name.endswith((".c", ".h"))}


def agent_compiler() -> str:
    """The command: $CC, or cc."""
    return program_compiler()


def build_agent(cache: Cache) -> Path:
    """The agent's executable, a static x86-64 ELF program."""
    return build_program(cache, _KIND, agent_sources())


def agent_at_hand(cache: Cache) -> Path | None:
    """The same, if it need not be built."""
    return program_at_hand(cache, _KIND, agent_sources())
