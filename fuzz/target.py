# SPDX-License-Identifier: GPL-2.0-or-later
"""What a target is, and what counts as a finding."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from veil.formats.errors import FormatError
from veil.guest.errors import GuestImageError
from veil.remote.errors import RemoteError
from veil.services.kci import KciError
from veil.services.kci.modules import ModuleRefused

__all__ = ["ALLOWED", "SLOW", "Finding", "Target", "examine"]

#: How a reader says that bytes are bad. Callers catch these and nothing else, so anything else ends a program.
ALLOWED = (FormatError, RemoteError, ModuleRefused, KciError, GuestImageError)
#: Of the processor, not of the clock: the computer may have other work.
_SECONDS, _SLOW_SECONDS = 1.0, 20.0
#: the `place` of what takes longer
SLOW = "slow"
_HERE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Target:
    """A reader with its invariants (AssertionError if one does not hold)."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    """Valid inputs: `run` accepts every one, otherwise the fuzzer would only ever see the reader's first check."""
    words: tuple[bytes, ...] = ()
    """What the reader compares its input with."""
    max_bytes: int = 4096
    slow: bool = False
    """An input takes a good part of a second: for `make fuzz` and `make soak` alone."""
    reached: Callable[[], int] | None = None
    """How much of the code inputs have reached so far, of a target that is no Python: `fuzz.steered`."""


@dataclass(frozen=True)
class Finding:
    """An input that does what none may do. Findings with equal `place` are most likely the same mistake."""

    what: str
    place: str


def examine(target: Target, data: bytes) -> Finding | None:
    """Run one input."""
    start = time.process_time()
    try:
        target.run(data)
    except ALLOWED:
        pass
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of cryptography's Rust code is not an Exception
        return Finding(_one_line(error), _place(error))
    seconds = time.process_time() - start
    if seconds > (_SLOW_SECONDS if target.slow else _SECONDS):
        return Finding(f"{len(data)} bytes take {seconds:.1f} s", SLOW)
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


def _place(error: BaseException) -> str:
    """Where in the project it came from: the innermost line that is ours."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(_HERE))]
    ours = [frame for frame in frames if "/.venv/" not in frame.filename]
    if not ours:
        return type(error).__name__
    last = ours[-1]
    return f"{type(error).__name__} at {Path(last.filename).relative_to(_HERE)}:{last.lineno}"
