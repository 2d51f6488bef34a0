# SPDX-License-Identifier: GPL-2.0-or-later
"""Options for settings of protected services, as their settings declare them (`ShortOption`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, fields
from typing import Any, NamedTuple

import click

from veil.cli.files import read_certificates
from veil.formats.kci_settings import certificate_text
from veil.formats.service_catalogue import SERVICES
from veil.formats.service_settings import ShortOption
from veil.formats.sizes import format_size, parse_size

__all__ = ["SERVICE_OPTIONS", "service_options", "settings_text"]


class _Declared(NamedTuple):
    service: str
    setting: str
    option: ShortOption
    default: str
    """As help says it; empty: nothing."""

    @property
    def parameter(self) -> str:
        return self.option.flag.removeprefix("--").replace("-", "_")

    def decorator(self) -> Callable[[Any], Any]:
        option = self.option
        more: dict[str, Any] = {"envvar": option.variable, "help": self._help()}
        if option.switch is not None:
            return click.option(option.flag, self.parameter, is_flag=True, **more)
        if option.choices:
            more["type"] = click.Choice(option.choices)
        return click.option(option.flag, self.parameter, multiple=option.each, metavar=option.metavar, **more)

    def _help(self) -> str:
        said = f"${self.option.variable}, or {self.default}" if self.option.variable else self.default
        return f"{self.option.help}  [default: {said}]" if said else self.option.help


def _declared() -> Iterator[_Declared]:
    for name, service in SERVICES.items():
        for field in fields(service.settings_type):
            option = field.metadata.get("option")
            if option is not None:
                yield _Declared(name, field.name, option, _default(service.settings_type, field, option))


def _default(settings: type, field: Field[Any], option: ShortOption) -> str:
    if option.switch is not None or option.each:
        return ""
    value = getattr(settings, field.name)
    return format_size(value) if field.metadata["read"] is parse_size else str(value)


SERVICE_OPTIONS = {item.parameter: item for item in _declared()}


def service_options(*, settings: bool) -> list[Callable[[Any], Any]]:
    """The options of commands that make or measure an image; `settings`: those of commands with --service, too."""
    return [item.decorator() for item in SERVICE_OPTIONS.values() if item.option.everywhere or settings]


def settings_text(values: Mapping[str, Any]) -> list[str]:
    """What was given for these options (by parameter), each as "NAME:KEY=VALUE"."""
    found = []
    for parameter, value in values.items():
        item = SERVICE_OPTIONS[parameter]
        text = _text(item.option, value)
        if text:
            found.append(f"{item.service}:{item.setting}={text}")
    return found


def _text(option: ShortOption, value: Any) -> str | None:
    if option.switch is not None:
        return option.switch if value else None
    if option.certificates:
        value = _certificates(value)
    return ":".join(value) if option.each else value


def _certificates(names: tuple[str, ...]) -> list[str]:
    if not names:
        return []
    from cryptography.hazmat.primitives.serialization import Encoding

    from veil.remote.attestation.certificates import load_certificates

    return [
        certificate_text(found.public_bytes(Encoding.DER))
        for name in names
        for found in load_certificates(read_certificates(name))
    ]
