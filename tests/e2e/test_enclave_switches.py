# SPDX-License-Identifier: GPL-2.0-or-later
"""Enclaves of a booted guest on several VCPUs, and in a snapshot: a context waits in its VMSA for whichever VCPU."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.e2e.enclave_images import EXIT, PRINT, enclave_image
from tests.e2e.snapshots import Resume
from veil.cvm import ConfidentialVM
from veil.cvm.enclaves import enclave_command, image_place
from veil.formats.domains import ENCLAVE_VMPL
from veil.formats.enclave_settings import ON, EncSettings
from veil.formats.enclaves import WINDOW
from veil.host import Event, ExitEvent
from veil.image.services_image import protected_services
from veil.snp import ExitCode
from veil.snp.layouts import EVENT_VALID, SevFeatures, Vmcb, Vmsa

ENCLAVES = protected_services(EncSettings(mode=ON))


def computing(nanoseconds: int) -> str:
    """Code that takes this long, and checks that a register stays what it was."""
    return f"""
        rdtsc
        shl rdx, 32
        or rax, rdx
        mov r15, rax
        mov r13, 12345
    2:  cmp r13, 12345
        jne 2b
        rdtsc
        shl rdx, 32
        or rax, rdx
        sub rax, r15
        mov rcx, {nanoseconds}
        cmp rax, rcx
        jb 2b
    """


def put(vm: ConfidentialVM, folder: Path, image: bytes) -> str:
    """The command that runs the image in the guest."""
    place = folder / "test.enclave"
    place.write_bytes(image)
    vm.copy_in(place, image_place(place))
    return shlex.join(enclave_command(place, []))


def test_many_enclaves_on_two_vcpus(resume: Resume, tmp_path: Path) -> None:
    vm = resume(vcpus=2, services=ENCLAVES)
    command = put(vm, tmp_path, enclave_image(computing(50_000_000) + PRINT + computing(50_000_000) + PRINT + EXIT(3)))
    loop = f"for i in 1 2 3 4 5 6 7 8 9 10; do ({command}; echo status $?) & done; wait"
    lines = vm.run(["sh", "-c", loop], timeout=100).stdout.decode().splitlines()
    assert sorted(lines) == ["hello"] * 20 + ["status 3"] * 10
    assert vm.machine.counters.switches > 20, "the machine did them"


def test_an_enclave_in_a_snapshot(resume: Resume, tmp_path: Path) -> None:
    """It goes on where it was, with the registers that it had, in another machine."""
    vm = resume(services=ENCLAVES)
    command = put(vm, tmp_path, enclave_image(computing(3_000_000_000) + PRINT + EXIT(5)))
    vm.run(["sh", "-c", f"({command} > /tmp/out; echo $? > /tmp/status) > /dev/null 2>&1 &"])
    until = "for i in $(seq 100); do [ -e /tmp/status ] && break; sleep 0.1; done; cat /tmp/out /tmp/status"
    first = vm.hypervisor.vcpus[0]
    vm.hypervisor.run(lambda: first.vmpl == 2, timeout=60)
    assert first.vmpl == 2
    place = tmp_path / "snapshot"
    vm.snapshot(place)
    with ConfidentialVM.restore(place) as again:
        assert again.run(["sh", "-c", until], timeout=100).stdout == b"hello\n5\n"
    # And in the one that it was taken of.
    assert vm.run(["sh", "-c", until], timeout=100).stdout == b"hello\n5\n"


@pytest.mark.parametrize("restricted", [True, False])
def test_a_host_that_injects_events_wherever_it_can(resume: Resume, tmp_path: Path, restricted: bool) -> None:
    """At each exit of the enclave it calls VMRUN itself, with a #VC, a page fault and `int 0x80` of its own.

    Without restricted injection they arrive, and this enclave, which takes each event for its end, ends.
    """
    vm = resume(services=ENCLAVES)
    # An event may come before its first instruction: the handler knows for itself where the window is.
    handler = f"mov rbx, {WINDOW}\n{EXIT(66)}"
    image = enclave_image(computing(20_000_000) + (PRINT + computing(1_000_000)) * 5 + EXIT(5), event=handler)
    command = put(vm, tmp_path, image)
    tried: list[int] = []

    def attack(event: Event) -> None:
        first = vm.hypervisor.vcpus[0]
        if not isinstance(event, ExitEvent) or event.vmpl != ENCLAVE_VMPL or first.current is None:
            return
        vmsa = first.current.vmcb.vmsa_pa
        if not restricted:
            features = vmsa + Vmsa.sev_features.offset
            vm.machine.view(vmpl=0).write_u64(features, SevFeatures.SNP)
        for injected in (29 | 3 << 8 | 1 << 11 | 0x72 << 32, 14 | 3 << 8 | 1 << 11 | 4 << 32, 0x80 | 4 << 8, 0x80):
            vmcb = Vmcb(vmsa_pa=vmsa, event_inj=injected | EVENT_VALID)
            # Without a deadline: on a busy computer it would pass before the event's handler has run.
            vm.machine.vmrun(vmcb)
            tried.append(vmcb.exit_code)

    vm.hypervisor.on_event = attack
    result = vm.run(["sh", "-c", command], timeout=100)
    if restricted:
        assert len(tried) > 20
        assert set(tried) == {ExitCode.INVALID}
        assert (result.stdout, result.exit_status) == (b"hello\n" * 5, 5)
    else:
        assert ExitCode.INVALID not in tried
        assert (result.stdout, result.exit_status) == (b"", 66)
