# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-LOG's settings: defaults and bounds, for the launch, the service and the command line alike."""

from __future__ import annotations

from dataclasses import dataclass

from veil.formats.errors import FormatError
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.service_settings import ServiceSettings, ShortOption, setting
from veil.formats.sizes import parse_size

__all__ = ["DROP", "HALT", "LOG_NUMBER", "LogSettings"]

LOG_NUMBER = 1

HALT, DROP = "halt", "drop"
_MIN_MEMORY = 64 << 10


@dataclass(frozen=True)
class LogSettings(ServiceSettings):
    """How much VeilS-LOG keeps, and what happens when there is no room (docs/log.md). Raises FormatError."""

    memory: int = setting(
        16 << 20,
        parse_size,
        ShortOption("--log-memory", "VeilS-LOG's memory (--service log:memory=SIZE).", metavar="SIZE"),
    )
    """Bytes; rounded up to whole pages, and to 64 KiB if there are fewer."""
    full: str = setting(
        HALT,
        str,
        ShortOption(
            "--log-full",
            "No room in it: programs wait for `veil logs ack`, or records are dropped and counted (--service "
            "log:full=...).",
            choices=(HALT, DROP),
        ),
    )
    """"halt": the kernel gets FULL, and waits, until an owner acknowledges; "drop": calls that find no room are
    counted, and the count is logged as soon as there is room."""

    def __post_init__(self) -> None:
        if self.full not in (HALT, DROP):
            raise FormatError(f"the log's setting 'full' must be {HALT} or {DROP}, not {self.full!r}")
        object.__setattr__(self, "memory", max(_MIN_MEMORY, -(-int(self.memory) // PAGE_SIZE) * PAGE_SIZE))

    @property
    def memory_size(self) -> int:
        """All of it is for entries."""
        return self.memory
