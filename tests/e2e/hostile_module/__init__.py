# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel code of an attacker's, in C, inserted into the booted guest: it acts while the kernel runs on."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.module_symbols import ModuleSymbols
from veil.cache import Cache
from veil.cvm import ConfidentialVM
from veil.guest.driver.build import build_driver, build_module
from veil.guest.linux.kernel import DEFAULT_SERIES, debian_kernel

__all__ = ["HostileKernel"]

_NAME = "hostile"


class HostileKernel:
    """A booted guest whose kernel an attacker has taken over."""

    def __init__(self, vm: ConfidentialVM, directory: Path) -> None:
        """`directory` is for the module's file."""
        self.vm = vm
        here = Path(__file__).parent
        sources = {path.name: path.read_bytes() for path in (here / "Kbuild", here / "hostile.c")}
        cache = Cache()
        module = directory / f"{_NAME}.ko"
        module.write_bytes(build_module(cache, debian_kernel(cache, DEFAULT_SERIES), _NAME, sources))
        vm.copy_in(module, f"/root/{_NAME}.ko")

    def do(self, attack: str, *, timeout: float | None = 60.0, **parameters: str | int) -> None:
        """Insert the module for one attack, and take it out again."""
        words = " ".join(f"{name}={value}" for name, value in {"attack": attack, **parameters}.items())
        self.sh(f"insmod {_NAME}.ko {words} && rmmod {_NAME}", timeout=timeout)

    def sh(self, command: str, *, timeout: float | None = 60.0) -> str:
        """A command of root's."""
        done = self.vm.run(["sh", "-c", command], timeout=timeout)
        assert done.exit_status == 0, (command, done.stderr)
        return done.stdout.decode()

    def symbol(self, name: str) -> int:
        """The address of one of the driver's own variables."""
        driver = build_driver(Cache(), debian_kernel(Cache(), DEFAULT_SERIES))
        return ModuleSymbols(self.vm, driver).address(name)
