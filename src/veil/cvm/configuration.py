# SPDX-License-Identifier: GPL-2.0-or-later
"""What a CVM is to be, as one value: it is compared, kept in snapshots, and the key by which they are found."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypedDict, Unpack

from veil.cvm.disks import Disk
from veil.cvm.networks import Network
from veil.cvm.plain_values import PlainValueError, from_plain, to_plain, typed
from veil.errors import VeilError
from veil.formats import sizes
from veil.formats.errors import FormatError
from veil.guest.initramfs.archive import Node
from veil.guest.linux.kernel import DEFAULT_SERIES, is_series
from veil.guest.ovmf.package import DEBIAN_FIRMWARE
from veil.host import DEFAULT_POLICY, LaunchIdentityBlock
from veil.host.devices import MAX_DISKS
from veil.image.services_image import PROTECTED_SERVICES, ServicesImage
from veil.installation import owner_fingerprint
from veil.snp import CpuFeature, SnpError, check_features

__all__ = ["NO_KERNEL", "QUIET", "Configuration", "Settings", "parse_size"]

#: in a kernel's place: firmware starts what it finds on a disk
NO_KERNEL = "none"

#: the kernel options of a CVM that is not watched
QUIET = ("quiet", "loglevel=4")
_MAX_VCPUS = 4
_MAX_USERS = 8
_DIGEST = 32
_TUPLES = ("kernel_options", "modules", "owners", "readers", "disks", "cpu_features")


class Settings(TypedDict, total=False):
    """What a user may choose beside memory and VCPUs, in the forms that users have it in: see `Configuration`."""

    kernel: str | os.PathLike[str] | None
    monitor: bool
    kernel_options: Sequence[str]
    modules: Sequence[str]
    owners: Sequence[bytes] | None
    readers: Sequence[bytes]
    policy: int
    host_data: bytes
    identity: LaunchIdentityBlock | None
    report_version: int
    services: ServicesImage | None
    driver: bool
    driver_options: str
    files: Mapping[str, Node] | None
    disks: Sequence[Disk | str]
    network: Network | str | None
    firmware: str | os.PathLike[str] | None
    initrd: str | os.PathLike[str] | None
    append: str | None
    igvm: str | os.PathLike[str] | None
    cpu_features: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """All that a CVM is made from, beside the programs of this computer.

    `make` takes the same in the forms that users have it in, with this installation's user as the owner.
    Raises VeilError for values that no CVM can have.
    """

    memory: int = 512 << 20
    """Bytes."""
    vcpus: int = 1
    kernel: str = DEFAULT_SERIES
    """A Debian kernel series ("6.1"), a file's path, or "none": firmware boots from a disk."""
    monitor: bool = True
    """Without VeilMon the kernel runs at VMPL 0; then there are no services and no users."""
    kernel_options: tuple[str, ...] = QUIET
    """Words of the command line, after those that the machine asks for."""
    modules: tuple[str, ...] = ()
    """Of the kernel's modules: inserted at start, each with its parameters after a space."""
    owners: tuple[bytes, ...] = ()
    """SHA-256 of the public keys of users who may read what services keep, make room in the log and set rules."""
    readers: tuple[bytes, ...] = ()
    """Of users who may read it."""
    policy: int = DEFAULT_POLICY
    """Of the SNP launch (guest policy, SNP firmware ABI, table 9), as the next two."""
    host_data: bytes = bytes(_DIGEST)
    identity: LaunchIdentityBlock | None = None
    report_version: int = 3
    """Of attestation reports: 2, 3 or 5."""
    services: ServicesImage | None = PROTECTED_SERVICES
    """The program at VMPL 1."""
    driver: bool = True
    """Is the driver in the initramfs, with which the kernel asks the services? Without it they hear nothing of the
    kernel. It is built for Debian's kernels only."""
    driver_options: str = ""
    """The driver's module parameters."""
    files: Mapping[str, Node] = field(default_factory=dict, repr=False)
    """More members of the initramfs by path, measured with it (`veil.guest.initramfs.debian_programs`)."""
    disks: tuple[Disk, ...] = ()
    """/dev/vda and so on, the host's and never trusted: how many there are is measured, not what is on them."""
    network: Network | None = None
    """The host's, and never trusted: that there is one is measured."""
    firmware: str | None = None
    """Stock firmware that starts the kernel, a file's path, or "debian"; without it the kernel is entered directly."""
    initrd: str | None = None
    """A file that the firmware gets in place of Veil's initramfs. Nobody can run commands there."""
    append: str | None = None
    """The whole command line that the firmware gets, in place of Veil's; or what an IGVM file asks for as one."""
    igvm: str | None = None
    """An IGVM file that has all that the guest begins with, in place of VeilMon, kernel and firmware."""

    cpu_features: tuple[str, ...] = ()
    """What the processor has beside what it always has: "xsave", and with it "pku"."""

    def __post_init__(self) -> None:
        # Whoever gives a list means the same value, and must not be able to change it afterwards.
        for name in _TUPLES:
            given = getattr(self, name)
            if isinstance(given, str | bytes | Disk):
                raise VeilError(f"{name} is a sequence, as ({given!r:.40},), not one item")
            object.__setattr__(self, name, tuple(given))
        object.__setattr__(self, "files", MappingProxyType(dict(self.files)))
        if not 1 <= self.vcpus <= _MAX_VCPUS:
            raise VeilError(f"a CVM has 1 to {_MAX_VCPUS} VCPUs, not {self.vcpus}")
        if self.memory <= 0:
            raise VeilError("a CVM has memory: give it more than 0 bytes")
        self._check_features()
        if not 0 <= self.policy < 1 << 64:
            raise VeilError(f"the guest policy is a number of 64 bits, not {self.policy:#x}")
        if len(self.host_data) != _DIGEST:
            raise VeilError(f"host data has {_DIGEST} bytes, not {len(self.host_data)}")
        if not self.monitor and (self.services is not None or self.owners or self.readers):
            raise VeilError("without a monitor a CVM has no services, owners or readers")
        if not self.driver and self.driver_options:
            raise VeilError("without the driver there is nothing that options of the driver could be for")
        if len(self.disks) > MAX_DISKS:
            raise VeilError(f"a CVM has at most {MAX_DISKS} disks, not {len(self.disks)}")
        if self.igvm is not None:
            self._check_igvm()
        elif self.firmware is None and (self.initrd is not None or self.append is not None):
            raise VeilError("an initrd and a whole command line are given to firmware: choose one (--firmware)")
        elif self.kernel == NO_KERNEL and (self.firmware is None or self.initrd is not None or self.append is not None):
            raise VeilError("without a kernel there is firmware (--firmware), and neither an initrd nor a command line")
        if self.kernel == NO_KERNEL and self.monitor:
            raise VeilError("a guest that firmware boots from a disk has no monitor: --no-monitor")
        for users in (self.owners, self.readers):
            if len(users) > _MAX_USERS:
                raise VeilError(
                    f"{len(users)} keys are too many: a CVM has at most {_MAX_USERS} owners and as many readers"
                )
            if any(len(item) != _DIGEST for item in users):
                raise VeilError(f"owners and readers are named by the {_DIGEST} bytes of a key's SHA-256")

    @property
    def features(self) -> frozenset[CpuFeature]:
        """`cpu_features` as the machine takes them."""
        return frozenset(map(CpuFeature, self.cpu_features))

    def _check_features(self) -> None:
        known = [feature.value for feature in CpuFeature]
        for name in self.cpu_features:
            if name not in known:
                raise VeilError(f"no processor here has {name!r:.40}: there are {', '.join(known)}")
        try:
            check_features(self.features)
        except SnpError as error:
            raise VeilError(str(error)) from error

    def _check_igvm(self) -> None:
        """All that is loaded is in the file."""
        if self.monitor or self.kernel != NO_KERNEL or self.firmware is not None or self.initrd is not None:
            raise VeilError(
                "an IGVM file has all that the guest begins with: leave out kernel, firmware, initrd and monitor"
            )
        if self.files or self.modules or self.driver_options:
            raise VeilError("an IGVM file has no initramfs of Veil's: nothing can be put there")

    def __hash__(self) -> int:
        return hash(self.key())

    @classmethod
    def make(cls, memory: str | int = "512M", vcpus: int = 1, **settings: Unpack[Settings]) -> Configuration:
        """From values as users write them: "512M", a kernel's path, "disk.img,tmp".

        The owner is this installation's user if nobody is named.
        Services and users are left out without a monitor, and an IGVM file has its own. Raises VeilError.
        """
        given: dict[str, Any] = {**settings, "memory": parse_size(memory), "vcpus": vcpus}
        kernel = given.get("kernel")
        if given.get("igvm") is not None:
            given["monitor"] = False
            kernel = NO_KERNEL if kernel is None else kernel
        kernel = DEFAULT_SERIES if kernel is None else os.fspath(kernel)
        # A path is meant from here, wherever the value is used.
        given["kernel"] = kernel if is_series(kernel) or kernel == NO_KERNEL else os.path.abspath(kernel)
        for name in ("firmware", "initrd", "igvm"):
            path = given.get(name)
            if path is not None and os.fspath(path) != DEBIAN_FIRMWARE:
                given[name] = os.path.abspath(path)
        if not given.get("monitor", True):
            given |= {"owners": (), "readers": (), "services": None}
        elif given.get("owners") is None:
            given["owners"] = (owner_fingerprint(),)
        given["files"] = given.get("files") or {}
        network = given.get("network")
        given["network"] = Network.parse(network) if isinstance(network, str) else network
        given["disks"] = tuple(Disk.parse(item) if isinstance(item, str) else item for item in given.get("disks", ()))
        return cls(**given)

    @property
    def has_agent(self) -> bool:
        """Is Veil's agent in the guest, so that it can be told to run commands?"""
        return self.initrd is None and self.kernel != NO_KERNEL

    @property
    def named_files(self) -> tuple[str, ...]:
        """Paths of what the image is made from, on the computer where the configuration was made."""
        kernel = None if is_series(self.kernel) or self.kernel == NO_KERNEL else self.kernel
        firmware = None if self.firmware == DEBIAN_FIRMWARE else self.firmware
        return tuple(path for path in (kernel, firmware, self.initrd, self.igvm) if path is not None)

    def key(self) -> str:
        """Hexadecimal; equal for equal configurations only."""
        return hashlib.sha256(self.pack()).hexdigest()

    def pack(self) -> bytes:
        """As JSON, whole: the files are in it."""
        return json.dumps(to_plain(self)).encode()

    @classmethod
    def parse(cls, data: bytes) -> Configuration:
        """What `pack` made; raises VeilError in one line, whatever it is given."""
        try:
            found: Configuration = typed(from_plain(json.loads(data)), cls, "configuration")
        except PlainValueError as error:
            raise VeilError(str(error)) from error
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise VeilError(f"configuration is damaged: {error!r:.100}") from error
        return found


def parse_size(text: str | int) -> int:
    """Bytes from "512M", "4G", "1048576"; raises VeilError."""
    if isinstance(text, int):
        return text
    try:
        return sizes.parse_size(text)
    except FormatError as error:
        raise VeilError(str(error)) from error
