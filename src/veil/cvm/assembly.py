# SPDX-License-Identifier: GPL-2.0-or-later
"""From a configuration to the image that is launched: kernel, initramfs with driver and tools, and what is measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from veil.cache import Cache
from veil.cvm.configuration import Configuration
from veil.errors import VeilError
from veil.formats.enclave_calls import ENC_NAME
from veil.formats.enclave_settings import ON as ENCLAVES_ON
from veil.formats.enclave_settings import EncSettings
from veil.formats.kci import KCI_NAME
from veil.formats.kci_settings import OFF, KciSettings
from veil.formats.tsc import TSC_KHZ
from veil.guest.driver.build import build_driver, build_intruder, has_headers
from veil.guest.enclaves.starter.build import STARTER_FILE, build_starter
from veil.guest.ingredients import ingredients_at_hand
from veil.guest.initramfs.archive import Node
from veil.guest.initramfs.audit_tools import audit_tools
from veil.guest.initramfs.contents import DRIVER_FILE, LOCK_DOWN_FILE, build_initramfs
from veil.guest.linux.cmdline import command_line
from veil.guest.linux.kernel import Kernel, debian_kernel, is_series, open_kernel, require_bootable
from veil.guest.linux.modules import collect_modules
from veil.image.launch_image import LaunchImage, build_image
from veil.image.services_image import ServicesImage
from veil.snp import Machine

__all__ = ["Assembly"]


class Assembly:
    """Makes the parts of a configuration's image, with what this computer's cache has of them."""

    def __init__(self, configuration: Configuration, cache: Cache, progress: Callable[[str], None]) -> None:
        self._configuration = configuration
        self._cache = cache
        self._progress = progress

    def ingredients(self) -> dict[str, str] | None:
        """Name and checksum of the kernel, packages and programs that go into the image; None until all are at hand."""
        chosen = self._configuration
        return ingredients_at_hand(
            self._cache, chosen.kernel, driver=chosen.services is not None, enclaves=self._makes_enclaves()
        )

    def kernel(self) -> Kernel:
        """The kernel, fetched if need be."""
        name = self._configuration.kernel
        if is_series(name):
            return debian_kernel(self._cache, name, progress=self._progress)
        return open_kernel(self._cache, Path(name), progress=self._progress)

    def intruder(self) -> bytes:
        """A kernel module for this kernel that does what one would who took it over."""
        return build_intruder(self._cache, self.kernel(), self._progress)

    def kernel_modules(self, names: Sequence[str]) -> list[tuple[str, bytes]]:
        """(name, file) of modules of the kernel and of all they need, each after what it needs. Raises VeilError."""
        tree = self.kernel().modules
        if tree is None:
            raise VeilError("this kernel is a file, and came without modules")
        return collect_modules(tree, list(names))

    def image(self, machine: Machine) -> LaunchImage:
        """The image for a machine, whose CPUID values are in it."""
        chosen, kernel = self._configuration, self.kernel()
        require_bootable(kernel, monitor=chosen.monitor)
        driver = self._driver(kernel)
        tools = audit_tools(self._cache, self._progress) if driver is not None else {}
        if driver is not None and self._makes_enclaves():
            tools[STARTER_FILE] = Node.file(build_starter(self._cache).read_bytes(), 0o755)
        initramfs = build_initramfs(
            self._cache,
            module_tree=kernel.modules,
            modules=chosen.modules,
            driver=driver,
            driver_options=self._driver_options(),
            extra=tools | dict(chosen.files) | self._lock_down_file(),
            disks=bool(chosen.disks),
            progress=self._progress,
        )
        return build_image(
            kernel.load(),
            initramfs,
            command_line(chosen.kernel_options, tsc_khz=TSC_KHZ, disks=len(chosen.disks)),
            memory=chosen.memory,
            vcpus=chosen.vcpus,
            monitor=chosen.monitor,
            cpuid=machine.cpuid_entries(chosen.vcpus),
            owners=chosen.owners,
            readers=chosen.readers,
            services=self._services(driver),
        )

    def _code_integrity(self) -> KciSettings | None:
        """VeilS-KCI's settings, if it is to do something."""
        services = self._configuration.services
        settings = services.settings.get(KCI_NAME) if services is not None else None
        found = KciSettings.of(settings) if settings is not None else None
        return found if found is not None and found.mode != OFF else None

    def _makes_enclaves(self) -> bool:
        services = self._configuration.services
        settings = services.settings.get(ENC_NAME) if services is not None else None
        return settings is not None and EncSettings.of(settings).mode == ENCLAVES_ON

    def _driver_options(self) -> str:
        """The user's, and whether VeilS-KCI and VeilS-ENC are there to be asked."""
        options = [self._configuration.driver_options]
        if self._code_integrity() is not None:
            options.insert(0, f"kci=/{DRIVER_FILE}")
        if self._makes_enclaves():
            options.insert(0, "enc=1")
        return " ".join(filter(None, options))

    def _lock_down_file(self) -> dict[str, Node]:
        """What the measured init goes by when there is no driver that it could ask for lock-down."""
        settings = self._code_integrity()
        return {LOCK_DOWN_FILE: Node.file(settings.mode.encode())} if settings is not None else {}

    def _services(self, driver: bytes | None) -> ServicesImage | None:
        """The services. The driver is in the initramfs, which is measured; so VeilS-KCI admits it by its hash."""
        services, settings = self._configuration.services, self._code_integrity()
        if services is None or settings is None or driver is None:
            return services
        hashes = (*settings.hashes, hashlib.sha256(driver).hexdigest())
        return replace(services, settings={**services.settings, KCI_NAME: replace(settings, hashes=hashes).measured()})

    def _driver(self, kernel: Kernel) -> bytes | None:
        if self._configuration.services is None:
            return None
        if not has_headers(kernel.release):
            if self._code_integrity() is not None:
                raise VeilError(
                    f"Debian has no headers for the kernel {kernel.release}: it gets no driver, and nobody would ask "
                    "for lock-down. Take another kernel, or --kci off"
                )
            return None
        return build_driver(self._cache, kernel, self._progress)
