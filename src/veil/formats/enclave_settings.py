# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-ENC's settings: what a launch decides about enclaves."""

from __future__ import annotations

from dataclasses import dataclass

from veil.formats.errors import FormatError
from veil.formats.service_settings import ServiceSettings, ShortOption, setting

__all__ = ["ENC_NAME", "ENC_NUMBER", "LOG_SHARE", "OFF", "ON", "EncSettings"]

ENC_NAME = "enc"
ENC_NUMBER = 3
OFF, ON = "off", "on"
#: Of more the list for users would not fit into the mailbox: a kernel that makes so many could keep it from them.
_MOST = 1024
#: Of the protected log's memory, for what is told of enclaves. The ledger of `services/enc` divides it.
LOG_SHARE = 9 / 32


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise FormatError(f"{text!r} is not a whole number") from None


@dataclass(frozen=True)
class EncSettings(ServiceSettings):
    """Whether processes may make enclaves (docs/enclaves.md). Raises FormatError."""

    mode: str = setting(
        OFF,
        str,
        ShortOption("--enclaves", "Processes may make enclaves (--service enc:mode=on).", switch=ON, everywhere=True),
    )
    """"off": every request for an enclave is refused; "on": processes that may open /dev/veil-enclave make them."""
    most: int = setting(_MOST, _number)
    """Enclaves at once."""
    # Who a user is is the kernel's word: VeilS-ENC bounds all of them together, and the driver each.
    user_enclaves: int = setting(128, _number)
    """Of these one user's, unless it has CAP_SYS_RESOURCE; 0 is no bound. The guest's kernel sees to it."""
    user_memory: int = setting(50, _number)
    """Percent of the guest's memory that one user's enclaves have together; the rest as for `user_enclaves`."""

    def __post_init__(self) -> None:
        if self.mode not in (OFF, ON):
            raise FormatError(f"VeilS-ENC's setting 'mode' must be {OFF} or {ON}, not {self.mode!r}")
        if type(self.most) is not int or not 1 <= self.most <= _MOST:
            raise FormatError(f"VeilS-ENC's setting 'most' is 1 to {_MOST} enclaves, not {self.most!r}")

        for name, most in (("user_enclaves", _MOST), ("user_memory", 100)):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value <= most:
                raise FormatError(f"VeilS-ENC's setting {name!r} is 0 (no bound) to {most}, not {value!r}")

    @property
    def driver_options(self) -> str:
        """What the guest's driver must know of them, as parameters of the module."""
        if self.mode == OFF:
            return ""
        return f"enc=1 enc_user_enclaves={self.user_enclaves} enc_user_memory={self.user_memory}"

    @property
    def log_share(self) -> float:
        """What of the protected log's memory is for what is told of enclaves; nothing without them."""
        return 0.0 if self.mode == OFF else LOG_SHARE

    @property
    def needs_monitor(self) -> str:
        """For enclaves."""
        return "" if self.mode == OFF else "enclaves need VeilMon: "
