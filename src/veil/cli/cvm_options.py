# SPDX-License-Identifier: GPL-2.0-or-later
"""The options that say which CVM is meant, and the configuration that they make."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Unpack

import click

from veil.cli.kci_options import CODE_OPTIONS, code_policy
from veil.cli.option_types import Function, WrongValue, options
from veil.errors import VeilError
from veil.formats.enclave_settings import ENC_NAME
from veil.formats.enclave_settings import ON as ENCLAVES_ON
from veil.formats.errors import FormatError
from veil.formats.kci import KCI_NAME
from veil.formats.kci_settings import OFF, KciSettings
from veil.formats.log_settings import DROP, HALT, LogSettings
from veil.formats.sizes import format_size, parse_size

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
        help="Another kernel: a bzImage or vmlinux, or a Debian series (6.1; 6.12-amd64 is the ordinary kernel). none: "
        "firmware boots from a disk.",
    ),
    click.option("--no-monitor", is_flag=True, help="Boot the kernel at VMPL 0, without VeilMon."),
    click.option(
        "--disk",
        "disks",
        multiple=True,
        metavar="IMAGE[,write|,tmp]|scratch:SIZE",
        help="A raw image as /dev/vda, the next as /dev/vdb: read-only, written to, or with what is written gone at "
        "the end. scratch: an empty one, gone at the end. What is on a disk is not measured, and no secret.",
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
    click.option("--enclaves", is_flag=True, help="Processes may make enclaves (--service enc:mode=on)."),
)


_SERVICES_OPTIONS = (
    click.option(
        "--service",
        multiple=True,
        metavar="NAME:KEY=VALUE,...",
        help="Settings of a protected service, as in log:memory=64M,full=drop.",
    ),
    click.option(
        "--log-memory",
        metavar="SIZE",
        help=f"VeilS-LOG's memory (--service log:memory=SIZE).  [default: {format_size(LogSettings.memory)}]",
    ),
    click.option(
        "--log-full",
        type=click.Choice([HALT, DROP]),
        help="No room in it: programs wait for `veil logs ack`, or records are dropped and counted (--service "
        f"log:full=...).  [default: {LogSettings.full}]",
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
    disks: tuple[str, ...] = ()
    firmware: str | None = None
    append: str | None = None
    initrd: str | None = None
    igvm: str | None = None
    enclaves: bool = False
    kci: str | None = None
    kci_keys: str | None = None
    kci_certificate: tuple[str, ...] = ()
    kci_hash: tuple[str, ...] = ()
    kci_writable: tuple[str, ...] = ()
    service: tuple[str, ...] = ()
    log_memory: str | None = None
    log_full: str | None = None
    driver_options: str = ""
    owner: tuple[str, ...] = ()
    reader: tuple[str, ...] = ()

    def configuration(self, **more: Unpack[Settings]) -> Configuration:
        """The CVM's configuration; raises VeilError. It makes this installation's user, if nobody else is the owner."""
        from veil.cvm import Configuration

        more.setdefault("kernel", self.kernel)
        more.setdefault("monitor", not self.no_monitor)
        more.setdefault("disks", self.disks)
        more.setdefault("firmware", self.firmware)
        more.setdefault("append", self.append)
        more.setdefault("initrd", self.initrd)
        more.setdefault("igvm", self.igvm)
        more.setdefault("services", self._services())
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

        short = {
            "log": {"memory": self.log_memory, "full": self.log_full},
            ENC_NAME: {"mode": ENCLAVES_ON if self.enclaves else None},
            KCI_NAME: code_policy(self.kci, self.kci_keys, self.kci_certificate, self.kci_hash, self.kci_writable),
        }
        texts = [
            f"{name}:{key}={value}"
            for name, settings in short.items()
            for key, value in settings.items()
            if value is not None
        ]
        try:
            services = services_from_text([*texts, *self.service])
        except FormatError as error:
            raise WrongValue(str(error)) from error
        without = "leave out --no-monitor" if self.igvm is None else "leave out --igvm"
        no_monitor = self.no_monitor or self.igvm is not None
        if no_monitor and KciSettings.of(services.settings[KCI_NAME]).mode != OFF:
            raise VeilError(f"kernel code integrity needs VeilMon: --kci off, or {without}")
        if no_monitor and self.enclaves:
            raise VeilError(f"enclaves need VeilMon: {without}")
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
        *CODE_OPTIONS,
        *(_SERVICES_OPTIONS if services else ()),
        *(_USER_OPTIONS if users else ()),
        *((_INITRD_OPTION,) if initrd else ()),
        *((_IGVM_OPTION,) if igvm else ()),
    )
    names = [item.name for item in fields(CvmOptions)]

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def command(*args: Any, **values: Any) -> Any:
            chosen = {name: values.pop(name) for name in names if name in values}
            return function(*args, cvm=CvmOptions(**chosen), **values)

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
