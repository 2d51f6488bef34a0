# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of an enclave in a booted guest whose host keeps a page of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.enclave_images import EXIT, PRINT, enclave_image
from tests.e2e.snapshots import Resume
from tests.e2e.test_enclave_secrets import service_of
from tests.e2e.test_enclaves import ENCLAVES, counts, run
from veil.cvm import ConfidentialVM
from veil.cvm.enclaves import enclave_command, image_place


@pytest.fixture
def vm(resume: Resume) -> ConfidentialVM:
    return resume(services=ENCLAVES)


def test_a_host_that_keeps_a_page_of_one_that_ends(vm: ConfidentialVM, tmp_path: Path) -> None:
    """All other pages are the kernel's again, and another enclave runs."""
    place = tmp_path / "endless.enclave"
    place.write_bytes(enclave_image("2: jmp 2b"))
    vm.copy_in(place, image_place(place))
    command = " ".join(enclave_command(place, []))
    vm.run(["sh", "-c", f"{command} < /dev/null > /dev/null 2>&1 & echo $! > /tmp/endless"])
    while not counts(vm)["entries"]:
        pass
    (enclave,) = service_of(vm)._enclaves.values()
    page = enclave.spare[0]
    host = vm.machine.host_view()
    host.psmash(page & -(2 << 20))
    host.rmpupdate(page, assigned=False)
    wait = (
        "kill -9 $(cat /tmp/endless); for i in 1 2 3 4 5 6 7 8 9; do grep -q 'stuck 1' /dev/veil && exit; sleep 1; done"
    )
    assert vm.run(["sh", "-c", f"{wait}; exit 1"]).exit_status == 0
    after = counts(vm)
    assert (after["enclaves"], after["stuck"], after["pages"]) == (0, 1, 1)
    assert list(enclave.owned) == [page]
    result = run(vm, tmp_path, enclave_image(PRINT + EXIT(7)))
    assert (result.stdout, result.exit_status) == (b"hello\n", 7)
    assert counts(vm)["pages"] == 1
