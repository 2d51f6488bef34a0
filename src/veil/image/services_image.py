# SPDX-License-Identifier: GPL-2.0-or-later
"""The services' part of the launch image: their program, their settings, and where in their region is what."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from veil.formats.errors import FormatError
from veil.formats.launch_digest import PageType
from veil.formats.page_sizes import PAGE_SIZE, PAGE_SIZE_2M
from veil.formats.service_catalogue import SERVICES
from veil.formats.service_domain import OUTBOX_SIZE
from veil.formats.service_settings import ServiceSettings, split_settings
from veil.host import LaunchRegion
from veil.services.parameters import KernelSegment, ServiceParameters, pack_settings
from veil.snp.hosted import hosted_header, pack_sources

__all__ = [
    "BLOCKS",
    "CODE",
    "MAILBOX",
    "MAILBOX_SIZE",
    "PROTECTED_SERVICES",
    "ServicesImage",
    "protected_services",
    "service_regions",
    "services_from_text",
]

# Offsets in the services' region; header and archive of the program are at CODE, their memory follows.
_SERVICE_PARAMETERS, BLOCKS, MAILBOX = 0, PAGE_SIZE, 2 * PAGE_SIZE
MAILBOX_SIZE = 0x40000 + OUTBOX_SIZE
CODE = MAILBOX + MAILBOX_SIZE


@dataclass(frozen=True)
class ServicesImage:
    """The program of the services' domain: its class, "package.module:Class", the packages that are measured, settings
    for each service by name, and how much memory the services have together (whole pages). Raises FormatError if the
    settings are too long."""

    entry: str
    packages: tuple[str, ...]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    memory: int = 0
    keeps_kernel: bool = False
    """Do the services get a private copy of the kernel as it is launched, in more memory?"""

    def __post_init__(self) -> None:
        pack_settings(self.settings)

    def decides_refusals(self) -> bool:
        """Does a service guard pages? Then the host is to hand refused accesses of the kernel on to VeilMon."""
        module, _, name = self.entry.partition(":")
        domain = getattr(importlib.import_module(module), name)
        return any(service.guards for service in domain.service_types)

    @functools.cached_property
    def archive(self) -> bytes:
        """The sources that are measured."""
        return pack_sources(self.packages)

    def region_size(self, kernel: Sequence[KernelSegment]) -> int:
        """Bytes with this kernel, a multiple of 2 MiB."""
        archive = _whole_pages(len(self.archive))
        size = CODE + PAGE_SIZE + archive + self.memory + self.kernel_size(kernel)
        return -(-size // PAGE_SIZE_2M) * PAGE_SIZE_2M

    def kernel_size(self, kernel: Sequence[KernelSegment]) -> int:
        """Bytes of the copy of this kernel."""
        return sum(_whole_pages(segment.size) for segment in kernel) if self.keeps_kernel else 0


def protected_services(*chosen: ServiceSettings) -> ServicesImage:
    """Veil's own services, with the settings that are given and the defaults of all others. Raises FormatError."""
    given = {type(settings): settings for settings in chosen}
    settings = {name: given.pop(service.settings_type, service.settings_type()) for name, service in SERVICES.items()}
    if given:
        raise FormatError(f"no service has settings of this kind: {next(iter(given)).__name__}")
    return ServicesImage(
        "veil.services.protected:ProtectedServices",
        ("veil.formats", "veil.services"),
        {name: own.measured() for name, own in settings.items()},
        memory=sum(own.memory_size for own in settings.values()),
        keeps_kernel=any(own.keeps_kernel for own in settings.values()),
    )


def services_from_text(texts: Iterable[str]) -> ServicesImage:
    """Veil's own services with settings as people write them, each "NAME:KEY=VALUE,KEY=VALUE"; of a key that comes
    again the last value counts. Raises FormatError."""
    types = {name: service.settings_type for name, service in SERVICES.items()}
    said: dict[str, list[str]] = {}
    for name, text in map(split_settings, texts):
        if name not in types:
            raise FormatError(f"there is no service {name!r}: the services are {', '.join(types)}")
        said.setdefault(name, []).append(text)
    return protected_services(*(types[name].parse(",".join(parts)) for name, parts in said.items()))


#: `protected_services()` with the default settings.
PROTECTED_SERVICES = protected_services()


def service_regions(
    services: ServicesImage, own: int, vcpus: int, kernel: Sequence[KernelSegment]
) -> list[LaunchRegion]:
    """Parameters, then the program: header and archive. `own`: where the services' region begins."""
    archive = services.archive
    archive_gpa = own + CODE + PAGE_SIZE
    memory = archive_gpa + _whole_pages(len(archive))
    end = own + services.region_size(kernel)
    copy = end - services.kernel_size(kernel)
    parameters = bytes(
        ServiceParameters.make(
            {name: dict(settings) for name, settings in services.settings.items()},
            kernel if services.keeps_kernel else (),
            vcpus=vcpus,
            mailbox_gpa=own + MAILBOX,
            mailbox_size=MAILBOX_SIZE,
            blocks_gpa=own + BLOCKS,
            memory_gpa=memory,
            memory_size=copy - memory,
            kernel_copy_gpa=copy if services.keeps_kernel else 0,
        )
    )
    header = hosted_header(
        services.entry,
        archive=(archive_gpa, len(archive)),
        parameters=(own + _SERVICE_PARAMETERS, len(parameters)),
    )
    return [
        LaunchRegion(own + _SERVICE_PARAMETERS, PageType.NORMAL, parameters, name="service settings"),
        LaunchRegion(own + CODE, PageType.NORMAL, header, name="services"),
        LaunchRegion(archive_gpa, PageType.NORMAL, archive, name="services"),
    ]


def _whole_pages(size: int) -> int:
    return -(-size // PAGE_SIZE) * PAGE_SIZE
