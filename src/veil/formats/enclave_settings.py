# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-ENC's settings: what a launch decides about enclaves."""

from __future__ import annotations

from dataclasses import dataclass

from veil.formats.errors import FormatError
from veil.formats.service_settings import ServiceSettings, ShortOption, setting

__all__ = ["ENC_NAME", "ENC_NUMBER", "OFF", "ON", "EncSettings"]

ENC_NAME = "enc"
ENC_NUMBER = 3
OFF, ON = "off", "on"
#: Of more the list for users would not fit into the mailbox: a kernel that makes so many could keep it from them.
_MOST = 1024


@dataclass(frozen=True)
class EncSettings(ServiceSettings):
    """Whether processes may make enclaves (docs/enclaves.md). Raises FormatError."""

    mode: str = setting(
        OFF,
        str,
        ShortOption("--enclaves", "Processes may make enclaves (--service enc:mode=on).", switch=ON, everywhere=True),
    )
    """"off": every request for an enclave is refused; "on": processes that may open /dev/veil-enclave make them."""
    most: int = setting(_MOST, int)
    """Enclaves at once."""

    def __post_init__(self) -> None:
        if self.mode not in (OFF, ON):
            raise FormatError(f"VeilS-ENC's setting 'mode' must be {OFF} or {ON}, not {self.mode!r}")
        if type(self.most) is not int or not 1 <= self.most <= _MOST:
            raise FormatError(f"VeilS-ENC's setting 'most' is 1 to {_MOST} enclaves, not {self.most!r}")

    @property
    def needs_monitor(self) -> str:
        """For enclaves."""
        return "" if self.mode == OFF else "enclaves need VeilMon: "
