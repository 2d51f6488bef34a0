# SPDX-License-Identifier: GPL-2.0-or-later
"""What ends a guest, in words for its user."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from veil.errors import VeilError
from veil.host import HostError
from veil.snp import SnpError

__all__ = ["BootTimeout", "CommandTimeout", "explained"]

#: what values that no host of ours would have saved can end in, while devices work with them
_NONSENSE = (
    LookupError, TypeError, ValueError, ArithmeticError, AttributeError, AssertionError, RecursionError, MemoryError,
    struct.error,
)  # fmt: skip
_OURS = ("veil.host", "veil.snp", "veil.monitor", "veil.services", "veil.formats", "veil.guest")


class BootTimeout(VeilError):
    """The guest's agent did not come up in time."""


class CommandTimeout(VeilError):
    """A command ran longer than it was given."""


@contextmanager
def explained(panic: Callable[[HostError], BaseException], snapshot: str | None) -> Iterator[None]:
    """Turns what ends a guest into VeilErrors.

    `panic` says what a host's error comes from, if the kernel panicked before; `snapshot`: the file that the guest is
    from, if somebody named one: no value in it makes us fail with more than one line.
    """
    try:
        yield
    except TimeoutError as error:
        raise CommandTimeout(str(error)) from error
    except HostError as error:
        # A panic mostly shows itself to the host as the reset after it.
        cause = panic(error)
        if cause is error:
            raise
        raise cause from error
    except SnpError as error:
        raise VeilError(str(error)) from error
    except _NONSENSE as error:
        if snapshot is None or not _is_our_own(error):
            raise
        raise VeilError(f"the snapshot {snapshot} cannot go on: {error!r:.200}") from error


def _is_our_own(error: BaseException) -> bool:
    """Did the machine, its host or the hosted code raise it, and not a caller's own function?"""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith(_OURS)
