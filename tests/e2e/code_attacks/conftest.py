# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that are attacked: locked down or not, one for all tests of a file or a copy for a single test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.code_attacks.guests import VICTIM, CodeGuest, Resume, build
from tests.e2e.code_attacks.hostile_files import resigned
from tests.e2e.snapshots import OPEN_KERNEL, RunSnapshots, halfway, locking_services
from tests.services.kci.debian_image import kernel_code, kernel_image
from veil.cvm import ConfidentialVM, Configuration
from veil.formats.kci_settings import HALT, OFF, ON
from veil.image.services_image import PROTECTED_SERVICES
from veil.services.kci import KernelCode
from veil.services.kci.service import KciService

#: Modules that the policy of these guests allows, for whoever has the tests' key can have them admitted, whatever is
#: in them.
_ALLOWED = ("attacker", "rootkit")


@pytest.fixture(scope="session")
def code() -> KernelCode:
    """The rules for the text of the guests' kernel."""
    return kernel_code(kernel_image())


def _configuration(mode: str) -> Configuration:
    return Configuration.make(vcpus=2, services=OPEN_KERNEL if mode == OFF else locking_services(mode))


@pytest.fixture(scope="session")
def begun(snapshots: RunSnapshots) -> Callable[[str], Path]:
    """The snapshot of a guest of a mode that loads its driver, for `halfway`."""
    return lambda mode: snapshots.begun(_configuration(mode))


@pytest.fixture(scope="session")
def attacked(
    snapshots: RunSnapshots, begun: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The snapshot of a guest of a mode, with the attacker in its kernel."""
    folder = tmp_path_factory.mktemp("attacked")

    def make(mode: str) -> Path:
        def prepare(path: Path) -> None:
            with ExitStack() as stack:
                if mode == HALT:
                    # Nobody else wants one that is up.
                    vm = stack.enter_context(halfway(begun(mode), PROTECTED_SERVICES))
                    vm.connect()
                else:
                    vm = stack.enter_context(ConfidentialVM.restore(snapshots.of(_configuration(mode))))
                _settle(vm, folder)
                vm.snapshot(path)

        return snapshots.once(f"attacked-{mode}", prepare)

    return make


def _settle(vm: ConfidentialVM, folder: Path) -> None:
    """The attacker comes into the kernel."""
    guest = CodeGuest(vm)
    modules = {name: resigned(build(name)) for name in _ALLOWED}
    for name, module in (*modules.items(), *vm.kernel_modules([VICTIM])):
        guest.put(name, module, folder)
    assert guest.sh("insmod /root/attacker.ko") == (0, "")


@pytest.fixture
def unasked(
    snapshots: RunSnapshots, begun: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], CodeGuest]]:
    """Copies of a guest of mode "halt" that nobody has asked for lock-down yet, with the attacker in its kernel."""
    made: list[CodeGuest] = []

    def prepare(path: Path) -> None:
        with pytest.MonkeyPatch.context() as patch, halfway(begun(HALT), PROTECTED_SERVICES) as vm:
            patch.setattr(KciService, "_lock_down", lambda service: b"")
            vm.connect()
            _settle(vm, tmp_path_factory.mktemp("unasked"))
            vm.snapshot(path)

    def make() -> CodeGuest:
        made.append(CodeGuest(ConfidentialVM.restore(snapshots.once("unasked", prepare))))
        return made[-1]

    yield make
    for guest in made:
        guest.vm.close()


@pytest.fixture
def resume(attacked: Callable[[str], Path]) -> Iterator[Resume]:
    """Copies of a guest, each the test's own."""
    made: list[CodeGuest] = []

    def make(mode: str = ON) -> CodeGuest:
        made.append(CodeGuest(ConfidentialVM.restore(attacked(mode))))
        return made[-1]

    yield make
    for guest in made:
        guest.vm.close()


def _shared(attacked: Callable[[str], Path], mode: str) -> Iterator[CodeGuest]:
    with ConfidentialVM.restore(attacked(mode)) as vm:
        yield CodeGuest(vm)


@pytest.fixture(scope="module")
def locked(attacked: Callable[[str], Path]) -> Iterator[CodeGuest]:
    """One under lock-down for all tests of a file, which find each other's violations in it."""
    yield from _shared(attacked, ON)


@pytest.fixture(scope="module")
def unlocked(attacked: Callable[[str], Path]) -> Iterator[CodeGuest]:
    """One without lock-down for all tests of a file, which change its kernel."""
    yield from _shared(attacked, OFF)


@pytest.fixture
def halting(resume: Resume) -> CodeGuest:
    """One that a violation ends."""
    return resume(HALT)
