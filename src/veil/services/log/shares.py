# SPDX-License-Identifier: GPL-2.0-or-later
"""What of the log's memory is kept for the words of certain services, whatever else there is to be told."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from veil.services.log.store import LogStore

__all__ = ["Shares"]


@dataclass
class _Share:
    """One service's."""

    bytes: int
    """Of the log's memory."""
    taken: int = 0
    """By entries that no owner has acknowledged; it may be more than the share, if there was other room."""
    standing: deque[tuple[int, int]] = field(default_factory=deque)
    """These: (where in the log it ends, bytes)."""

    @property
    def free(self) -> int:
        return max(0, self.bytes - self.taken)


class Shares:
    """Room that nobody else gets, not the kernel either, which can make as many records as it likes."""

    def __init__(self, store: LogStore, parts: Mapping[int, float]) -> None:
        """`parts`: of the log's memory, by the service's number."""
        self._store = store
        self._shares = {service: _Share(int(part * store.span.size)) for service, part in parts.items()}
        self.free = 0
        """Bytes that are kept, and that nothing stands in."""
        self._count()

    @property
    def services(self) -> tuple[int, ...]:
        """Those that have one, by number."""
        return tuple(self._shares)

    def others(self, service: int) -> int:
        """Bytes of `free` that are not this service's."""
        return self.free - self.own(service)

    def own(self, service: int) -> int:
        """Bytes of `free` that are this service's."""
        share = self._shares.get(service)
        return share.free if share is not None else 0

    def told(self, service: int, length: int) -> None:
        """An entry of its own was appended just now."""
        share = self._shares.get(service)
        if share is not None:
            share.standing.append((self._store.span.told, length))
            share.taken += length
            self._count()

    def acknowledged(self) -> None:
        """An owner has: what stood there is the service's to use again."""
        gone = self._store.span.gone
        for share in self._shares.values():
            while share.standing and share.standing[0][0] <= gone:
                share.taken -= share.standing.popleft()[1]
        self._count()

    def _count(self) -> None:
        self.free = sum(share.free for share in self._shares.values())

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        return {str(service): list(share.standing) for service, share in self._shares.items()}

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `dump` gave."""
        for service, share in self._shares.items():
            share.standing = deque((end, length) for end, length in state[str(service)])
            share.taken = sum(length for _, length in share.standing)
        self._count()
