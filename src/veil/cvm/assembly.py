# SPDX-License-Identifier: GPL-2.0-or-later
"""From a configuration to the image that is launched: kernel, initramfs with driver and tools, and what is measured."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from veil.cache import Cache
from veil.cvm.configuration import NO_KERNEL, Configuration
from veil.errors import VeilError
from veil.formats.domains import KERNEL_VMPL, MONITOR_VMPL
from veil.formats.enclave_settings import ENC_NAME, EncSettings
from veil.formats.enclave_settings import ON as ENCLAVES_ON
from veil.formats.kci import KCI_NAME
from veil.formats.kci_settings import OFF, KciSettings
from veil.formats.tsc import TSC_KHZ
from veil.guest.agent.build import agent_compiler
from veil.guest.driver.build import build_driver, build_intruder, driver_compiler
from veil.guest.enclaves.starter.build import STARTER_FILE, build_starter
from veil.guest.errors import NoDriverError
from veil.guest.igvm.file import IgvmFile, open_igvm
from veil.guest.ingredients import igvm_ingredient, ingredients_at_hand, kernel_at_hand, with_firmware
from veil.guest.initramfs.archive import Node
from veil.guest.initramfs.audit_tools import audit_tools
from veil.guest.initramfs.contents import DRIVER_FILE, LOCK_DOWN_FILE, build_initramfs
from veil.guest.linux.cmdline import check_command_line, command_line
from veil.guest.linux.kernel import Kernel, debian_kernel, is_series, open_kernel, require_bootable
from veil.guest.linux.modules import collect_modules
from veil.guest.ovmf.efi_program import read_efi_program
from veil.guest.ovmf.metadata import Firmware
from veil.guest.ovmf.package import open_firmware, read_initrd
from veil.guest.toolchain import compiler_version
from veil.host import DEFAULT_POLICY
from veil.image.services_image import ServicesImage
from veil.snp import Machine, ram_ranges

# What makes an image takes long to import: that is left to those who make one, which a resumed guest does not.
if TYPE_CHECKING:
    from veil.image.firmware_image import BootFiles
    from veil.image.launch_image import LaunchImage
    from veil.snp.cpuid import CpuidEntryValues

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
        if chosen.igvm is not None:
            return igvm_ingredient(Path(chosen.igvm))
        kernel = None if chosen.kernel == NO_KERNEL else chosen.kernel
        if chosen.has_agent:
            driver = chosen.services is not None and chosen.driver
            found = ingredients_at_hand(self._cache, chosen.kernel, driver=driver, enclaves=self._makes_enclaves())
        else:
            found = kernel_at_hand(self._cache, kernel)
        if found is None or chosen.firmware is None:
            return found
        return with_firmware(self._cache, found, kernel, chosen.firmware, chosen.initrd)

    def compilers(self) -> dict[str, str]:
        """Which compiler and linker made the programs that are compiled, in words."""
        if not self._configuration.has_agent:
            return {}
        return {
            "agent": compiler_version(agent_compiler()),
            "driver": driver_compiler(self._cache, self.kernel().release),
        }

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

    @functools.cached_property
    def firmware(self) -> Firmware | None:
        """The firmware that starts the kernel, fetched if need be; None if there is none."""
        name = self._configuration.firmware
        return open_firmware(self._cache, name, self._progress) if name is not None else None

    @functools.cached_property
    def igvm(self) -> IgvmFile | None:
        """The IGVM file, read and checked; None if there is none."""
        name = self._configuration.igvm
        return open_igvm(Path(name)) if name is not None else None

    @property
    def kernel_vmpl(self) -> int:
        """The level that the platform's interrupts are for: the kernel's, or an IGVM file's least privileged one."""
        if self.igvm is not None:
            from veil.image.igvm_image import least_privileged_level

            return least_privileged_level(self.igvm)
        return KERNEL_VMPL if self._configuration.monitor else MONITOR_VMPL

    @property
    def firmware_size(self) -> int:
        """How much memory below 4 GiB firmware takes, or an IGVM file."""
        chosen = self._configuration
        if self.igvm is not None:
            from veil.image.igvm_image import igvm_memory

            return igvm_memory(self.igvm)
        if self.firmware is None:
            return 0
        from veil.image.firmware_image import firmware_memory

        return firmware_memory(self.firmware, chosen.vcpus, monitor=chosen.monitor)

    @property
    def far_memory(self) -> tuple[int, int] | None:
        """(GPA, length) of memory that an IGVM file has by itself."""
        if self.igvm is None:
            return None
        from veil.image.igvm_image import far_memory

        return far_memory(self.igvm, self._configuration.memory)

    @functools.cached_property
    def boot_files(self) -> BootFiles | None:
        """What the firmware gets to boot; None if there is no firmware, or if it boots from a disk."""
        chosen = self._configuration
        if chosen.firmware is None or chosen.kernel == NO_KERNEL:
            return None
        from veil.image.firmware_image import BootFiles

        line = None if chosen.append is None else check_command_line(chosen.append)
        program = None if is_series(chosen.kernel) else read_efi_program(Path(chosen.kernel))
        if program is not None:
            if chosen.initrd is None:
                raise VeilError(
                    f"{chosen.kernel}: nobody is in an EFI program who runs commands: give it an initrd of yours with "
                    "`veil boot --initrd FILE` (an empty file will do)"
                )
            return BootFiles(program, self._users_initrd(chosen.initrd), line or "")
        kernel = self.kernel()
        require_bootable(kernel, monitor=chosen.monitor)
        if chosen.initrd is not None:
            initrd = self._users_initrd(chosen.initrd)
        else:
            initrd = self._initramfs(kernel, self._driver(kernel))
        if line is None:
            line = self._command_line(io_apic=True)
        return BootFiles(kernel.load_bzimage(), initrd, line)

    def _users_initrd(self, path: str) -> bytes:
        if self._configuration.services is not None:
            self._progress(f"no driver of Veil's in your initramfs: {self._deaf_services()}")
        return read_initrd(Path(path))

    def image(self, machine: Machine) -> LaunchImage:
        """The image for a machine, whose CPUID values are in it."""
        from veil.image.firmware_image import MonitorBelow, build_firmware_image
        from veil.image.launch_image import build_image

        chosen = self._configuration
        cpuid = machine.cpuid_entries(chosen.vcpus)
        if self.igvm is not None:
            return self._igvm_image(self.igvm, cpuid)
        if self.firmware is not None:
            ram = ram_ranges(chosen.memory, self.firmware_size)
            below = MonitorBelow(chosen.owners, chosen.readers, chosen.services) if chosen.monitor else None
            return build_firmware_image(
                self.firmware,
                self.boot_files,
                ram=ram,
                vcpus=chosen.vcpus,
                cpuid=cpuid,
                monitor=below,
                sev_features=machine.sev_features,
            )
        kernel = self.kernel()
        require_bootable(kernel, monitor=chosen.monitor)
        driver = self._driver(kernel)
        return build_image(
            kernel.load(),
            self._initramfs(kernel, driver),
            self._command_line(),
            memory=chosen.memory,
            vcpus=chosen.vcpus,
            monitor=chosen.monitor,
            cpuid=cpuid,
            owners=chosen.owners,
            readers=chosen.readers,
            services=self._services(driver),
            sev_features=machine.sev_features,
        )

    def _igvm_image(self, file: IgvmFile, cpuid: Sequence[CpuidEntryValues]) -> LaunchImage:
        from veil.image.igvm_image import build_igvm_image

        chosen = self._configuration
        if file.policy not in (None, chosen.policy) and chosen.policy != DEFAULT_POLICY:
            raise VeilError(f"{file.name} has a guest policy ({file.policy:#x}): it cannot be {chosen.policy:#x}")
        if file.identity is not None and chosen.identity is not None:
            raise VeilError(f"{file.name} has an ID block: there cannot be another one")
        return build_igvm_image(
            file,
            ram=ram_ranges(chosen.memory, self.firmware_size),
            vcpus=chosen.vcpus,
            cpuid=cpuid,
            command_line=chosen.append or "",
            policy=chosen.policy,
            far=self.far_memory,
        )

    def _initramfs(self, kernel: Kernel, driver: bytes | None) -> bytes:
        chosen = self._configuration
        tools = audit_tools(self._cache, self._progress) if driver is not None else {}
        if driver is not None and self._makes_enclaves():
            tools[STARTER_FILE] = Node.file(build_starter(self._cache).read_bytes(), 0o755)
        return build_initramfs(
            self._cache,
            module_tree=kernel.modules,
            modules=chosen.modules,
            driver=driver,
            driver_options=self._driver_options(),
            extra=tools | dict(chosen.files) | self._lock_down_file(),
            disks=bool(chosen.disks),
            network=chosen.network is not None,
            progress=self._progress,
        )

    def _command_line(self, *, io_apic: bool = False) -> str:
        chosen = self._configuration
        has_network = chosen.network is not None
        return command_line(
            chosen.kernel_options, tsc_khz=TSC_KHZ, disks=len(chosen.disks), network=has_network, io_apic=io_apic
        )

    def _code_integrity(self) -> KciSettings | None:
        """VeilS-KCI's settings, if it is to do something."""
        services = self._configuration.services
        settings = services.settings.get(KCI_NAME) if services is not None else None
        found = KciSettings.of(settings) if settings is not None else None
        return found if found is not None and found.mode != OFF else None

    def _enclaves(self) -> EncSettings:
        services = self._configuration.services
        settings = services.settings.get(ENC_NAME) if services is not None else None
        return EncSettings.of(settings) if settings is not None else EncSettings()

    def _makes_enclaves(self) -> bool:
        return self._enclaves().mode == ENCLAVES_ON

    def _driver_options(self) -> str:
        """The user's, and whether VeilS-KCI and VeilS-ENC are there to be asked."""
        options = [self._configuration.driver_options]
        if self._code_integrity() is not None:
            options.insert(0, f"kci=/{DRIVER_FILE}")
        options.insert(0, self._enclaves().driver_options)
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
        """None without services, or if the user wants none. Raises VeilError if it cannot be had: a guest whose
        services hear nothing looks like any other."""
        chosen = self._configuration
        if chosen.services is None:
            return None
        if chosen.driver:
            try:
                return build_driver(self._cache, kernel, self._progress)
            except NoDriverError as error:
                raise VeilError(
                    f"{error}. Without the driver: {self._deaf_services()}. Take another kernel, or --without-driver"
                ) from error
        if self._code_integrity() is not None:
            raise VeilError("without the driver nobody asks for lock-down: --kci off, or leave out --without-driver")
        if self._makes_enclaves():
            raise VeilError("without the driver no process makes an enclave: leave out --without-driver, or --enclaves")
        self._progress(f"no driver: {self._deaf_services()}")
        return None

    def _deaf_services(self) -> str:
        """What a kernel without the driver lacks, in words."""
        services, off = self._configuration.services, set()
        if self._code_integrity() is None:
            off.add(KCI_NAME)
        if not self._makes_enclaves():
            off.add(ENC_NAME)
        names = [
            f"VeilS-{name.upper()}" for name in (services.settings if services is not None else ()) if name not in off
        ]
        return f"services that hear nothing of the kernel: {', '.join(names)}"
