# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that are attacked: locked down or not, one for all tests of a file or a copy for a single test."""

from __future__ import annotations

import copy
import hashlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.code_attacks.guests import VICTIM, CodeGuest, Resume, build
from tests.e2e.snapshots import RunSnapshots
from tests.services.kci.debian_image import kernel_image
from tests.services.kci.modules.made_module import authority
from veil.cvm import ConfidentialVM, Configuration
from veil.formats.kci_settings import HALT, OFF, ON, KciSettings, certificate_text
from veil.image.services_image import protected_services
from veil.services.kci import KernelCode, KernelImage, Segment, measured_kernel

#: Modules that the policy of these guests allows.
_ALLOWED = ("attacker", "rootkit")


@pytest.fixture(scope="session")
def code() -> KernelCode:
    """The rules for the text of the guests' kernel."""
    return KernelCode(kernel_image())


@pytest.fixture(scope="session", autouse=True)
def derived_once() -> Iterator[None]:
    """What follows from the image of the guests' kernel is the same for all of them. A service derives it after each
    restoration, for a snapshot has no objects in it, and that is most of what a test of one attack takes."""
    images: dict[bytes, KernelImage] = {}
    codes: dict[int, KernelCode] = {}

    def image(segments: list[Segment]) -> KernelImage:
        digest = hashlib.sha256()
        for piece in segments:
            digest.update(struct.pack("<QQQ", piece.virtual, piece.physical, len(piece.data)) + piece.data)
        key = digest.digest()
        if key not in images:
            images[key] = KernelImage(segments)
        return images[key]

    def code(of: KernelImage) -> KernelCode:
        if id(of) not in codes:
            codes[id(of)] = KernelCode(of)
        # Modules that come and go change what one guest's rules know of the code around.
        return copy.copy(codes[id(of)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measured_kernel, "KernelImage", image)
        patch.setattr(measured_kernel, "KernelCode", code)
        yield


@pytest.fixture(scope="session")
def attacked(snapshots: RunSnapshots, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The snapshot of a guest of a mode, with the attacker in its kernel."""
    folder = tmp_path_factory.mktemp("attacked")
    modules = {name: build(name) for name in _ALLOWED}
    hashes = tuple(hashlib.sha256(module).hexdigest() for module in modules.values())

    def make(mode: str) -> Path:
        path = folder / mode
        if not path.exists():
            # Whoever has the test's key can have modules admitted that are hostile in other ways.
            policy = KciSettings(mode=mode, hashes=hashes, certificates=(certificate_text(authority().der),))
            services = protected_services(policy)
            with ConfidentialVM.restore(snapshots.of(Configuration.make(vcpus=2, services=services))) as vm:
                guest = CodeGuest(vm)
                for name, module in (*modules.items(), *vm.kernel_modules([VICTIM])):
                    guest.put(name, module, folder)
                assert guest.sh("insmod /root/attacker.ko") == (0, "")
                vm.snapshot(path)
        return path

    return make


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
