# SPDX-License-Identifier: GPL-2.0-or-later
"""An IGVM file that somebody else's tools built, such as COCONUT-SVSM's (docs/bring-your-own-image.md), runs.

    VEIL_IGVM=coconut.igvm VEIL_IGVM_WORDS="Launching request-processing task on CPU 0" make soak

VEIL_IGVM_WORDS is what its console says when it has come as far as it should.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from veil.cvm import ConfidentialVM

_FILE, _WORDS = os.environ.get("VEIL_IGVM"), os.environ.get("VEIL_IGVM_WORDS", "")
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not _FILE or not _WORDS, reason="VEIL_IGVM and VEIL_IGVM_WORDS name no file and its words"),
]

_TIMEOUT = 600.0


@pytest.mark.parametrize("vcpus", [1, 2])
def test_it_comes_as_far_as_it_should(vcpus: int) -> None:
    assert _FILE
    said = bytearray()
    vm = ConfidentialVM(igvm=Path(_FILE), memory="1G", vcpus=vcpus, cpu_features=("xsave",), console=said.extend)
    try:
        digest = vm.build_image().digest()
        vm.launch()
        vm.hypervisor.run(lambda: _WORDS.encode() in said, timeout=_TIMEOUT)
        assert _WORDS in said.decode("utf-8", "replace")
        assert vm.machine.secure_processor.measurement == digest
    finally:
        vm.close()
