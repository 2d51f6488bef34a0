# SPDX-License-Identifier: GPL-2.0-or-later
"""What a launch decides about a protected service, as one dataclass for each service: default, bounds, and how people
write each setting.

Settings are measured: they are JSON in the services' parameters, and in text NAME:KEY=VALUE,KEY=VALUE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from veil.formats.errors import FormatError

__all__ = ["ServiceSettings", "ShortOption", "setting", "split_settings"]


@dataclass(frozen=True)
class ShortOption:
    """An option of the command line that is short for --service NAME:KEY=VALUE."""

    flag: str
    help: str
    """The default is added to it."""
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    switch: str | None = None
    """It takes no value; this is the setting's, if it is given."""
    each: bool = False
    """For each item of a list: it can be given several times."""
    certificates: bool = False
    """Its values name files with certificates; the setting's are these certificates."""
    variable: str | None = None
    """The environment variable that is as good."""
    everywhere: bool = False
    """Of all commands that make or measure an image, not only of those that have --service."""


def setting(default: Any, read: Callable[[str], Any], option: ShortOption | None = None) -> Any:
    """A field of settings; `read` makes its value of text, and raises FormatError. `option`: if it has one."""
    return field(default=default, metadata={"read": read, "option": option})


@dataclass(frozen=True)
class ServiceSettings:
    """A service's settings: subclasses add fields with `setting`, and check their bounds in `__post_init__`, where they
    raise FormatError. This class itself is for services without settings."""

    @property
    def memory_size(self) -> int:
        """Bytes of memory that the service needs with these settings, a multiple of 4096."""
        return 0

    @property
    def keeps_kernel(self) -> bool:
        """Does the service need a private copy of the kernel as it was launched?"""
        return False

    @property
    def ignored(self) -> str:
        """What of these settings has no effect, in a line for who gave them: a wish to be protected must not come to
        nothing without a word. Empty: all have."""
        return ""

    @property
    def needs_monitor(self) -> str:
        """Why there must be a VeilMon, as the beginning of the line that refuses to go on without; or empty."""
        return ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "KEY=VALUE,KEY=VALUE"; of a key that comes again the last value counts. Raises FormatError."""
        known = {item.name: item.metadata["read"] for item in fields(cls)}
        found = {}
        for part in filter(None, text.split(",")):
            key, equals, value = part.partition("=")
            if key not in known or not equals:
                says = ", ".join(f"{name}=..." for name in known) or "none at all"
                raise FormatError(f"{part!r} is not one of the service's settings: they are {says}")
            found[key] = known[key](value)
        return cls(**found)

    @classmethod
    def of(cls, measured: Mapping[str, Any]) -> Self:
        """What `measured` made; raises FormatError."""
        try:
            return cls(**measured)
        except TypeError as error:
            raise FormatError(f"a service has other settings than these: {error}") from error

    def measured(self) -> dict[str, Any]:
        """As they are measured: plain values, as JSON gives them back."""
        found = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def split_settings(text: str) -> tuple[str, str]:
    """The service's name and its settings, of "NAME:KEY=VALUE,..."; raises FormatError."""
    name, colon, rest = text.partition(":")
    if not name or not colon:
        raise FormatError(f"{text!r} does not say which service: write NAME:KEY=VALUE, as in log:memory=64M")
    return name, rest
