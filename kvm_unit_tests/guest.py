# SPDX-License-Identifier: GPL-2.0-or-later
"""One test as an SNP guest: stock firmware starts it in a kernel's place, its hash measured."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kvm_unit_tests.output import End, Outcome, is_dump_complete, read_output
from veil.cvm import ConfidentialVM, Configuration
from veil.host import HostError, RunResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvm_unit_tests.checkout import Test

__all__ = ["Guest", "TestDevices"]

#: QEMU's isa-debug-exit and pc-testdev, as kvm-unit-tests want them (x86/run).
_EXIT_PORT, _ECHO_PORT, _PIN_PORTS = 0xF4, 0xE0, 0x2000
_PINS = 24
#: The smap test wants memory to end at 512 MiB, or before.
_MEMORY = "512M"
_VCPUS = 1
_TAIL = 512


class TestDevices:
    """The ports by which tests end, that remember what was written, and that drive the I/O APIC's pins."""

    # pytest looks for classes with such names.
    __test__ = False

    def __init__(self, on_exit: Callable[[], None]) -> None:
        self.status: int | None = None
        self._on_exit = on_exit
        self._echo = 0

    def attach(self, vm: ConfidentialVM) -> None:
        """To the board of a guest that was launched and does not run yet."""
        io, io_apic = vm.platform.io, vm.platform.io_apic
        io.add_wide(_EXIT_PORT, lambda size: 0, self._exit)
        io.add_wide(_ECHO_PORT, lambda size: self._echo & (1 << 8 * size) - 1, self._remember)
        if io_apic is not None:
            for pin in range(_PINS):
                io.add_register(_PIN_PORTS + pin, None, _driver(io_apic.line(pin)))

    def _exit(self, size: int, value: int) -> None:
        self.status = value
        self._on_exit()

    def _remember(self, size: int, value: int) -> None:
        self._echo = value


class Guest:
    """Runs tests, each in a guest of its own. `say` gets what Veil does meanwhile, `show` what tests print."""

    def __init__(
        self,
        firmware: str,
        cpu_features: Sequence[str],
        timeout: float,
        say: Callable[[str], None],
        show: Callable[[bytes], None],
    ) -> None:
        self._firmware = firmware
        self._cpu_features = tuple(cpu_features)
        self._timeout = timeout
        self._say = say
        self._show = show

    def run(self, test: Test, program: Path) -> Outcome:
        """Until it ends, or `timeout` seconds passed. Raises VeilError if there is no such guest."""
        with tempfile.TemporaryDirectory(prefix="veil-kvm-unit-tests-") as folder:
            environment = Path(folder) / "environment"
            environment.write_text(f"NR_CPUS={_VCPUS}\nTEST_DEVICE=1\nBOOTLOADER=1\n")
            words = [program.name, test.arguments]
            return self._run(
                Configuration.make(
                    _MEMORY,
                    _VCPUS,
                    monitor=False,
                    firmware=self._firmware,
                    cpu_features=self._cpu_features,
                    kernel=program,
                    initrd=environment,
                    append=" ".join(filter(None, words)),
                )
            )

    def _run(self, configuration: Configuration) -> Outcome:
        printed = bytearray()

        def take(data: bytes) -> None:
            printed.extend(data)
            self._show(data)
            if is_dump_complete(bytes(printed[-_TAIL:])):
                vm.hypervisor.stop()

        vm = ConfidentialVM(configuration, fresh=True, progress=self._say, console=take)
        try:
            vm.launch()
            devices = TestDevices(vm.hypervisor.stop)
            devices.attach(vm)
            try:
                result = vm.hypervisor.run(timeout=self._timeout)
            except HostError as error:
                return read_output(bytes(printed), End.GUEST, why=str(error))
        finally:
            vm.close()
        if devices.status is not None:
            return read_output(bytes(printed), End.EXITED, devices.status)
        end = End.TIMEOUT if result is RunResult.TIMEOUT else End.UNHANDLED
        return read_output(bytes(printed), end)


def _driver(line: Callable[[bool], None]) -> Callable[[int], None]:
    return lambda value: line(bool(value))
