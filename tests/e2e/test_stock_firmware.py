# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's firmware, as it is, starts Debian's kernel, as it is: nothing of Veil's before the initramfs."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sevsnpmeasure.guest import snp_calc_launch_digest
from sevsnpmeasure.vmm_types import VMMType

from tests.e2e.enclave_images import EXIT, PRINT, enclave_image
from tests.e2e.log_guest import records_of, verified
from tests.e2e.snapshots import Resume, RunSnapshots, halfway
from veil.cache import Cache
from veil.cvm import ConfidentialVM, Configuration
from veil.cvm.firmware_board import boot_items, firmware_board
from veil.formats.enclave_settings import ON, EncSettings
from veil.formats.kci_settings import OFF, KciSettings
from veil.guest.ovmf.package import DEBIAN_FIRMWARE, firmware_at_hand
from veil.host import GuestPowerOff, RunResult
from veil.image.services_image import protected_services
from veil.snp.cpuid import PROCESSOR_SIGNATURE

_VCPUS = 2
#: of the firmware configuration
_COMMAND_LINE_SIZE, _COMMAND_LINE = 0x14, 0x15
#: What Linux says if the I/O APIC, devices' addresses, or where their interrupts go, is not as the tables say.
_COMPLAINTS = (
    "BIOS bug", "Firmware Bug", "no GSI", "can't derive routing", "nobody cared", "bogus", "can't claim",
    "failed to assign",
)  # fmt: skip


@pytest.fixture(scope="module")
def begun(snapshots: RunSnapshots) -> Path:
    """A snapshot of a guest whose firmware has got kernel and initrd, and asks how long the command line is."""
    configuration = Configuration.make(vcpus=_VCPUS, monitor=False, firmware=DEBIAN_FIRMWARE)

    def begin(path: Path) -> None:
        with closing(ConfidentialVM(configuration, fresh=True)) as vm:
            vm.launch()
            config = _firmware_configuration(vm)
            asked = vm.hypervisor.run(until=lambda: config._selected == _COMMAND_LINE_SIZE, timeout=180)
            assert asked is RunResult.DONE
            vm.snapshot(path)

    return snapshots.once(f"firmware-{configuration.key()}", begin)


@pytest.fixture
def stock(begun: Path) -> Iterator[ConfidentialVM]:
    with halfway(begun) as vm:
        # A snapshot has nothing of what the firmware asks for.
        board = firmware_board(vm.configuration, vm.machine, boot_items(vm._assembly.boot_files))
        _firmware_configuration(vm)._items |= board.items
        yield vm


def _firmware_configuration(vm: ConfidentialVM) -> Any:
    return vm.platform._firmware["firmware configuration"]


def _serial_interrupts(vm: ConfidentialVM) -> int:
    """How many the serial port had."""
    table = vm.run(["cat", "/proc/interrupts"]).stdout.decode()
    found = re.search(r"^ *4:((?: +\d+)+) +IO-APIC +4-edge +ttyS0$", table, re.MULTILINE)
    assert found is not None, table
    assert re.search(r"^ *0:( +\d+)+ +IO-APIC +2-edge +timer$", table, re.MULTILINE), table
    return sum(map(int, found.group(1).split()))


def _check_io_apic(vm: ConfidentialVM, log: str) -> None:
    assert "noapic" not in vm.run(["cat", "/proc/cmdline"]).stdout.decode()
    assert "IOAPIC[0]: apic_id 0, version 17, address 0xfec00000, GSI 0-23" in log
    assert "ACPI: Using IOAPIC for interrupt routing" in log
    assert [line for line in log.splitlines() if any(words in line for words in _COMPLAINTS)] == []
    before = _serial_interrupts(vm)
    assert vm.run(["sh", "-c", "echo by interrupts > /dev/ttyS0"]).exit_status == 0
    assert _serial_interrupts(vm) > before


@pytest.mark.open_kernel("firmware unpacks the kernel where code integrity does not expect it")
def test_under_veilmon_it_runs_at_vmpl_3(resume: Resume, tmp_path: Path) -> None:
    """The same firmware and kernel, with the protected services beside them."""
    vm = resume(services=protected_services(EncSettings(mode=ON), KciSettings(mode=OFF)), firmware=DEBIAN_FIRMWARE)
    log = vm.run(["dmesg"]).stdout.decode()
    assert "efi: EFI v2" in log
    assert "SEV: SNP running at VMPL3." in log
    _check_io_apic(vm, log)
    assert vm.build_image().digest() == vm.machine.secure_processor.measurement
    assert vm.run(["test", "-c", "/dev/sev-guest"]).exit_status == 0
    # The driver is there; and who reads the log has attested the launch digest before.
    vm.run(["sh", "-c", "auditctl -e 1 && auditctl -m 'under firmware'"])
    assert b"text=under firmware" in records_of(verified(vm))[-1].text
    enclave = tmp_path / "hello.enclave"
    enclave.write_bytes(enclave_image(PRINT + EXIT(7)))
    ended = vm.run_enclave(enclave)
    assert (ended.stdout, ended.exit_status) == (b"hello\n", 7)


@pytest.mark.soak
@pytest.mark.parametrize("monitor", [True, False])
@pytest.mark.parametrize("vcpus", [1, 2, 4])
def test_as_many_vcpus(vcpus: int, monitor: bool) -> None:
    with ConfidentialVM(vcpus=vcpus, monitor=monitor, firmware=DEBIAN_FIRMWARE, fresh=True) as vm:
        assert vm.run(["nproc"]).stdout.strip() == str(vcpus).encode()


def test_it_boots_as_a_guest_of_snp_does(stock: ConfidentialVM) -> None:
    vm = stock
    vm.connect()
    assert vm.run(["nproc"]).stdout.strip() == str(_VCPUS).encode()
    log = vm.run(["dmesg"]).stdout.decode()
    assert "efi: EFI v2" in log
    assert "Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP" in log
    assert "SEV: SNP guest platform device initialized" in log
    _check_io_apic(vm, log)
    # The firmware's own interface, from the running kernel.
    assert vm.run(["ls", "/sys/firmware/efi/runtime"]).exit_status == 0
    with pytest.raises(GuestPowerOff):
        vm.run(["poweroff", "-f"])


def test_the_digest_is_what_others_compute(stock: ConfidentialVM, tmp_path: Path) -> None:
    vm = stock
    files = vm._assembly.boot_files
    at_hand = firmware_at_hand(Cache(), DEBIAN_FIRMWARE)
    assert files is not None
    assert at_hand is not None
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(files.kernel)
    initrd.write_bytes(files.initrd)
    expected: Any = snp_calc_launch_digest(
        _VCPUS, PROCESSOR_SIGNATURE, str(at_hand[1]), str(kernel), str(initrd), files.command_line, 1, "", VMMType.QEMU
    )
    assert vm.machine.secure_processor.measurement == expected
    assert vm.build_image().digest() == expected


def test_another_command_line_is_refused_by_the_firmware(stock: ConfidentialVM) -> None:
    """A host that gives the guest what was not measured: the firmware stops for ever, with the kernel not begun."""
    vm = stock
    _tamper(vm)
    places: deque[int] = deque(maxlen=40)
    for _ in range(4000):
        vm.hypervisor.run(timeout=0.02)
        places.append(_instruction(vm) & ~0xF)
        # Interrupts come there, too.
        if Counter(places).most_common(1)[0][1] > 25:
            break
    else:
        pytest.fail("the firmware neither stopped nor started the kernel")
    assert b"Linux version" not in vm.console_output


def _tamper(vm: ConfidentialVM) -> None:
    """It was launched as measured; the host now offers another command line."""
    config = _firmware_configuration(vm)
    line = config._items[_COMMAND_LINE]
    config._items[_COMMAND_LINE] = line[:-4] + b"=no\0"
    assert len(config._items[_COMMAND_LINE]) == len(line)
    assert config._items[_COMMAND_LINE] != line


def _instruction(vm: ConfidentialVM) -> int:
    context = vm.hypervisor.vcpus[0].current
    assert context is not None
    return int(vm.machine.view(vmpl=0).read_u64(context.vmcb.vmsa_pa + 0x178))
