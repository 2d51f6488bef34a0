# SPDX-License-Identifier: GPL-2.0-or-later
"""How often the guest left its VCPUs, and what for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from veil.formats.ghcb import MsrRequest, NaeEvent
from veil.snp.exit_codes import ExitCode

if TYPE_CHECKING:
    import enum

__all__ = ["Counters"]


class Counters:
    """Totals since the host was made. Only known codes have one: a guest must not fill the host's memory with them."""

    __slots__ = ("exits", "msr_requests", "nae_events", "page_changes", "port_accesses", "unknown_msr_requests")

    def __init__(self) -> None:
        #: by exit code; the machine makes these, not the guest
        self.exits: dict[int, int] = {}
        #: by request of the GHCB MSR protocol
        self.msr_requests: dict[int, int] = {}
        self.unknown_msr_requests = 0
        #: by SW_EXITCODE, without `port_accesses`
        self.nae_events: dict[int, int] = {}
        #: IN and OUT of one element
        self.port_accesses = 0
        #: that were granted
        self.page_changes = 0

    def by_name(self) -> dict[str, int]:
        """Those that are not 0."""
        result = {f"exit {_name(ExitCode, code)}": count for code, count in self.exits.items()}
        result |= {f"msr {_name(MsrRequest, code)}": count for code, count in self.msr_requests.items()}
        result |= {f"nae {_name(NaeEvent, code)}": count for code, count in self.nae_events.items()}
        ioio = f"nae {NaeEvent.IOIO.name}"
        if self.port_accesses:
            result[ioio] = result.get(ioio, 0) + self.port_accesses
        if self.unknown_msr_requests:
            result["msr unknown"] = self.unknown_msr_requests
        if self.page_changes:
            result["page state changes"] = self.page_changes
        return result


def _name(kind: type[enum.IntEnum], code: int) -> str:
    try:
        return kind(code).name
    except ValueError:
        return f"{code:#x}"
