# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-KCI's rules explain the text of Debian's kernel as it runs, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.e2e.patching_workload import WORKLOAD
from tests.e2e.running_kernel import RunningKernel, admit_driver
from tests.e2e.snapshots import RunSnapshots
from tests.services.kci.debian_image import kernel_code, kernel_image
from veil.cvm import ConfidentialVM, Configuration
from veil.services.kci import KernelCode, kernel_ranges, physical_range
from veil.services.kci.explain_code import Explanation


@pytest.fixture
def code() -> KernelCode:
    return kernel_code(kernel_image())


@pytest.fixture(scope="module", params=[1, 2])
def guest(request: pytest.FixtureRequest, snapshots: RunSnapshots) -> Iterator[ConfidentialVM]:
    with ConfidentialVM.restore(snapshots.of(Configuration.make(vcpus=request.param))) as vm:
        yield vm


@pytest.fixture(scope="module")
def running(guest: ConfidentialVM) -> RunningKernel:
    return RunningKernel(guest)


def _explain(code: KernelCode, running: RunningKernel, now: bytes | None = None) -> Explanation:
    return code.explain(now or running.read(code.range.start, code.range.size), running.read)


def test_every_byte_is_explained_at_boot_and_after_work(
    guest: ConfidentialVM, running: RunningKernel, code: KernelCode
) -> None:
    admit_driver(code, running)
    booted = _explain(code, running)
    assert booted.unexplained == ()
    assert booted.configuration.uniprocessor == (guest.vcpus == 1)
    assert booted.changed > 500_000
    for kind in ("alternative", "return", "ENDBR", "constant", "function entry", "static call", "jump label"):
        assert booted.sites[kind] > 0, kind
    assert b"traced" in guest.run(["/bin/sh", "-c", WORKLOAD], timeout=120).stdout
    worked = _explain(code, running)
    assert worked.unexplained == ()
    assert worked.sites["jump label"] > booted.sites["jump label"] + 50
    assert worked.sites["static call trampoline"] > booted.sites["static call trampoline"]


def test_one_flipped_bit_is_found_wherever_it_is(running: RunningKernel, code: KernelCode) -> None:
    admit_driver(code, running)
    now = running.read(code.range.start, code.range.size)
    chosen = random.Random(11)
    numbers = chosen.sample(range(len(code.live)), 20)
    places = [int(code.live.offsets[number]) + chosen.randrange(2) for number in numbers]
    places += [chosen.randrange(code.range.size) for _ in range(40)]
    changed = bytearray(now)
    for at in places:
        changed[at] ^= 1 << chosen.randrange(8)
    wrong = {byte.address - code.range.start for byte in _explain(code, running, bytes(changed)).unexplained}
    for at in places:
        # A site that is patched at run time is wrong as a whole.
        assert any(abs(other - at) < 6 for other in wrong), hex(at)
    assert all(any(abs(other - at) < 6 for at in places) for other in wrong)


def test_what_the_kernel_protects_itself(running: RunningKernel, code: KernelCode) -> None:
    ranges = kernel_ranges(code.image)
    for piece in (ranges.text, *ranges.read_only):
        physical = physical_range(code.image, piece)
        assert running.translate(piece.start) == physical.start
        assert running.translate(piece.end - 1) == physical.end - 1
    assert {"sys_call_table", "idt_table", "__start___ex_table"} <= set(ranges.kept)
