# SPDX-License-Identifier: GPL-2.0-or-later
"""The options that say which CVM is meant, and the configuration that they make."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Unpack

import click

from veil.cli.option_types import Function, WrongValue, options
from veil.cli.service_options import SERVICE_OPTIONS, service_options, settings_text
from veil.errors import VeilError
from veil.formats.errors import FormatError
from veil.formats.service_catalogue import SERVICES
from veil.formats.sizes import parse_size

if TYPE_CHECKING:
    from veil.cvm import Configuration
    from veil.cvm.configuration import Settings
    from veil.image.services_image import ServicesImage

__all__ = ["CvmOptions", "cvm_options"]


_CVM_OPTIONS = (
    click.option("--memory", default="512M", show_default=True, metavar="SIZE", help="Guest memory: 512M, 4G, ..."),
    click.option("--vcpus", default=1, show_default=True, type=click.IntRange(1, 4), help="Virtual CPUs."),
    click.option(
        "--kernel",
        metavar="PATH|SERIES|none",
        help="Another kernel: a bzImage or vmlinux, or a Debian series (6.1; 6.12-amd64 is the ordinary kernel; "
        "7.3/trixie-backports is from another suite). none: "
        "firmware boots from a disk.",
    ),
    click.option("--no-monitor", is_flag=True, help="Boot the kernel at VMPL 0, without VeilMon."),
    click.option(
        "--without-driver",
        is_flag=True,
        help="Boot a kernel for which the driver cannot be built: the services hear nothing of it.",
    ),
    click.option(
        "--disk",
        "disks",
        multiple=True,
        metavar="IMAGE[,write|,tmp]|scratch:SIZE",
        help="A raw image as /dev/vda, the next as /dev/vdb: read-only, written to, or with what is written gone at "
        "the end. scratch: an empty one, gone at the end. What is on a disk is not measured, and no secret.",
    ),
    click.option(
        "--net",
        "network",
        metavar="user[,hostfwd=tcp:[ADDRESS:]PORT:GUESTPORT]...",
        help="A network card. The guest reaches what you reach from here, this computer's own 127.0.0.1 as 10.0.2.2 "
        "(loopback=off: not that; restrict=on: nothing). hostfwd: whoever comes to a port of this computer is carried "
        "to one of the guest's; without ADDRESS only from here. The network is the host's.",
    ),
    click.option(
        "--firmware",
        metavar="PATH|debian",
        help="Start with stock firmware (OVMF) as QEMU does: a file, or Debian's. It checks the kernel by its measured "
        "hash, and starts it.",
    ),
    click.option(
        "--append", metavar="TEXT", help="With --firmware: the kernel's whole command line; with --igvm: the file's."
    ),
    click.option(
        "--cpu-features",
        default="",
        metavar="NAME,...",
        help="What the processor is to have beside what it always has: xsave, and with it pku, which Debian's kernel "
        "uses, and starts programs more slowly; debug-swap: hardware breakpoints.",
    ),
)


_SERVICES_OPTIONS = (
    click.option(
        "--service",
        multiple=True,
        metavar="NAME:KEY=VALUE,...",
        help="Settings of a protected service, as in log:memory=64M,full=drop.",
    ),
    click.option(
        "--driver-options",
        default="",
        metavar="TEXT",
        help="Module parameters of the driver, as in 'log_intent=exec,module log_heartbeat=500'.",
    ),
)


_USER_OPTIONS = (
    click.option(
        "--owner",
        multiple=True,
        metavar="HEX|none",
        help="SHA-256 of an owner's public key (`veil key`): reads the log and the state of the kernel's code, "
        "makes room, sets rules. By default "
        "this installation's user.",
    ),
    click.option(
        "--reader",
        multiple=True,
        metavar="HEX",
        help="SHA-256 of a public key (`veil key`) whose holder may read the log and the state of the kernel's "
        "code (`veil kci status`), "
        "and nothing else.",
    ),
)


@dataclass(frozen=True)
class CvmOptions:
    """What the command line says of the CVM that is meant.

    `initrd`, `igvm`, and `service` to `reader`: of commands that have them.
    """

    memory: str
    vcpus: int
    kernel: str | None
    no_monitor: bool
    without_driver: bool = False
    disks: tuple[str, ...] = ()
    network: str | None = None
    firmware: str | None = None
    append: str | None = None
    cpu_features: str = ""
    initrd: str | None = None
    igvm: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """By parameter, of options for settings of services."""
    service: tuple[str, ...] = ()
    driver_options: str = ""
    owner: tuple[str, ...] = ()
    reader: tuple[str, ...] = ()

    def configuration(self, **more: Unpack[Settings]) -> Configuration:
        """The CVM's configuration; raises VeilError. It makes this installation's user, if nobody else is the owner."""
        from veil.cvm import Configuration

        more.setdefault("kernel", self.kernel)
        more.setdefault("monitor", not self.no_monitor)
        more.setdefault("disks", self.disks)
        more.setdefault("network", self.network)
        more.setdefault("firmware", self.firmware)
        more.setdefault("append", self.append)
        more.setdefault("cpu_features", tuple(filter(None, self.cpu_features.split(","))))
        more.setdefault("initrd", self.initrd)
        more.setdefault("igvm", self.igvm)
        more.setdefault("services", self._services())
        more.setdefault("driver", not self.without_driver)
        more.setdefault("driver_options", self.driver_options)
        more.setdefault("owners", _owners(self.owner))
        more.setdefault("readers", _fingerprints(self.reader, "--reader must be 64 hexadecimal digits (`veil key`)"))
        return Configuration.make(self._memory(), self.vcpus, **more)

    def _memory(self) -> int:
        try:
            return parse_size(self.memory)
        except FormatError as error:
            raise WrongValue(str(error)) from error

    def _services(self) -> ServicesImage:
        from veil.image.services_image import services_from_text

        try:
            services = services_from_text([*settings_text(self.settings), *self.service])
        except FormatError as error:
            raise WrongValue(str(error)) from error
        without = "--igvm" if self.igvm is not None else "--no-monitor" if self.no_monitor else None
        for name, service in SERVICES.items():
            settings = service.settings_type.of(services.settings[name])
            if settings.ignored:
                raise VeilError(settings.ignored)
            if settings.needs_monitor and without is not None:
                raise VeilError(f"{settings.needs_monitor}leave out {without}")
        return services


_INITRD_OPTION = click.option(
    "--initrd",
    metavar="FILE",
    help="With --firmware: an initramfs of yours in place of Veil's, without Veil's agent.",
)


_IGVM_OPTION = click.option(
    "--igvm",
    metavar="FILE",
    help="Launch what is in an IGVM file (pages, VMSAs, policy, ID block) in place of VeilMon and a kernel.",
)


def cvm_options(
    *, services: bool = False, users: bool = False, initrd: bool = False, igvm: bool = False
) -> Callable[[Function], Function]:
    """The options that say which CVM is meant; the command gets them as `cvm`, a `CvmOptions`.

    `services`: the protected services' settings too; `users`: who is more than a stranger to it; `initrd`: one of the
    user's own, and `igvm`, a file with a guest of the user's own: of commands that need no agent in the guest. All are
    measured.
    """
    declared = (
        *_CVM_OPTIONS,
        *service_options(settings=services),
        *(_SERVICES_OPTIONS if services else ()),
        *(_USER_OPTIONS if users else ()),
        *((_INITRD_OPTION,) if initrd else ()),
        *((_IGVM_OPTION,) if igvm else ()),
    )
    names = [item.name for item in fields(CvmOptions) if item.name != "settings"]

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def command(*args: Any, **values: Any) -> Any:
            chosen = {name: values.pop(name) for name in names if name in values}
            settings = {name: values.pop(name) for name in SERVICE_OPTIONS if name in values}
            return function(*args, cvm=CvmOptions(**chosen, settings=settings), **values)

        return options(*declared)(command)  # type: ignore[return-value]

    return decorate


def _owners(values: tuple[str, ...]) -> tuple[bytes, ...] | None:
    """The owners' fingerprints, None for this installation's user; raises VeilError."""
    if not values:
        return None
    if values == ("none",):
        return ()
    return _fingerprints(values, '--owner must be 64 hexadecimal digits (`veil key`), or "none"')


def _fingerprints(values: tuple[str, ...], words: str) -> tuple[bytes, ...]:
    try:
        found = tuple(bytes.fromhex(value) for value in values)
    except ValueError:
        raise WrongValue(words) from None
    if any(len(item) != 32 for item in found):
        raise WrongValue(words)
    return found
