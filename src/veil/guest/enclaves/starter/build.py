# SPDX-License-Identifier: GPL-2.0-or-later
"""The starter's program."""

from importlib.resources import files
from pathlib import Path

from veil.cache import Cache
from veil.guest.static_program import build_program, program_at_hand

__all__ = ["STARTER_FILE", "build_starter", "starter_at_hand", "starter_sources"]

_KIND = "veil-enclave"
#: where it is in the guest
STARTER_FILE = "bin/veil-enclave"


def starter_sources() -> dict[str, bytes]:
    """Its C files, and the headers that it shares with driver and runtime, by path."""
    place = files("veil.guest.enclaves")
    own = place.joinpath("starter/src")
    found = {
        f"starter/src/{item.name}": item.read_bytes() for item in own.iterdir() if item.name.endswith((".c", ".h"))
    }
    return found | {name: place.joinpath(name).read_bytes() for name in ("abi.h", "device.h", "program_calls.h")}


def build_starter(cache: Cache) -> Path:
    """The executable, a static x86-64 ELF program."""
    return build_program(cache, _KIND, starter_sources())


def starter_at_hand(cache: Cache) -> Path | None:
    """The same, if it need not be built."""
    return program_at_hand(cache, _KIND, starter_sources())
