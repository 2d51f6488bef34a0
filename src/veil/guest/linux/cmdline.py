# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's command line, each option with its reason."""

from collections.abc import Sequence
from dataclasses import dataclass

from veil.guest.errors import GuestImageError

MAX_LENGTH = 2047  # COMMAND_LINE_SIZE of x86, less the NUL
_HZ = 250  # of Debian's kernels; with another HZ the delay loops only last longer


@dataclass(frozen=True)
class KernelOption:
    """An option, and why it is there."""

    text: str
    reason: str


def default_options(
    tsc_khz: int, disks: int = 0, *, network: bool = False, io_apic: bool = False
) -> tuple[KernelOption, ...]:
    """The options that the machine, whose TSC has this rate, and which has so many disks, asks for.

    `network`: it has a network card. `io_apic`: it has one, as behind firmware.
    Those for loudness and consoles beyond ttyS0 are the caller's.
    """
    without_io_apic = KernelOption(
        "noapic", "there is no I/O APIC: devices use MSI-X, the serial port and the PIT the two 8259s"
    )
    return (
        KernelOption("console=ttyS0", "the host's 8250 shows the boot and every panic"),
        KernelOption("rdinit=/init", "process 1 is the one in the initramfs, whatever else is there"),
        KernelOption(
            "panic=-1", "a panic ends the machine at once by a reset, which the host reports, instead of hanging"
        ),
        KernelOption(
            "reboot=p", "a reset is one write to port CF9; other ways poll a keyboard controller that is not there"
        ),
        *(() if io_apic else (without_io_apic,)),
        KernelOption("pci=conf1", "PCI is configured by ports CF8/CFC: no test of whether that works, no ECAM"),
        KernelOption(
            "tsc=reliable",
            "the TSC is the only good clock: no watchdog over it, no synchronisation loops between VCPUs that never run"
            " at the same moment",
        ),
        KernelOption(f"tsc_early_khz={tsc_khz}", "the TSC's rate is known: nothing to calibrate against the PIT"),
        KernelOption(
            f"lpj={tsc_khz * 1000 // _HZ}", "delay loops count the TSC; further VCPUs would measure them again"
        ),
        KernelOption(
            "mitigations=off", "the software CPU does not speculate: flushes and thunks cost time, protect nothing"
        ),
        KernelOption(
            "cryptomgr.notests",
            "to try every cipher on known inputs takes a fifth of the boot; a kernel that is measured was tried before",
        ),
        KernelOption(
            f"swiotlb={4096 + 2048 * (disks + network)}",
            "8 MiB of bounce buffers, in slabs of 2 KiB; without a number an SEV guest takes 64 MiB or 6% of memory."
            " Two virtio-console ports have at most 4 MiB in flight; a disk has 2 MiB, a network card 1 MiB, for each"
            " of which there are 4 more",
        ),
        KernelOption(
            "nowatchdog",
            "the host may stop the guest for any time (a debugger, a snapshot, a slow computer): that is not a lockup",
        ),
        KernelOption("rcupdate.rcu_cpu_stall_suppress=1", "for the same reason a long pause is not an RCU stall"),
    )


def command_line(
    extra: Sequence[str] | str = (), *, tsc_khz: int, disks: int = 0, network: bool = False, io_apic: bool = False
) -> str:
    """The default options and then `extra`: where the kernel takes the last of two, the caller's wins."""
    words = [option.text for option in default_options(tsc_khz, disks, network=network, io_apic=io_apic)]
    words += [extra] if isinstance(extra, str) else list(extra)
    return check_command_line(" ".join(word for word in words if word))


def check_command_line(text: str) -> str:
    """Refuse what the kernel would cut off or misread."""
    raw = text.encode()
    if len(raw) > MAX_LENGTH:
        raise GuestImageError(f"the kernel's command line is too long: {len(raw)} bytes of at most {MAX_LENGTH}")
    if b"\0" in raw or b"\n" in raw:
        raise GuestImageError("the kernel's command line cannot contain NUL or newline")
    return text
