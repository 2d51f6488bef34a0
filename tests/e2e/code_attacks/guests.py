# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests with an attacker in their kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from tests.e2e.locked_guest import LockedGuest
from tests.e2e.running_kernel import RunningKernel
from veil.cache import Cache
from veil.formats.kci_status import CodeEvent, CodeWord
from veil.guest.driver.build import build_module
from veil.guest.linux.kernel import debian_kernel
from veil.monitor import VeilMon

__all__ = ["EFAULT", "RAN", "VICTIM", "CodeGuest", "Resume", "build"]

#: What a store gives that was refused.
EFAULT = -14
#: What the attacker's code returns when somebody executes it.
RAN = 0x666
#: A module of the distribution's, which is there as a file.
VICTIM = "dummy"

_HERE = Path(__file__).parent


def build(name: str) -> bytes:
    """The module NAME.ko, from the folder of its name."""
    files = (path for path in sorted((_HERE / name).iterdir()) if path.is_file() and path.suffix != ".py")
    sources = {path.name: path.read_bytes() for path in files}
    return build_module(Cache(), debian_kernel(Cache()), name, sources)


class CodeGuest(LockedGuest):
    """With the attacker in its kernel, which the policy of its launch allows."""

    def attack(self, *words: str | int, cpu: int = 0) -> list[int] | None:
        """What a command of the attacker's gives; None if the kernel ended it."""
        line = " ".join(f"{word:#x}" if isinstance(word, int) else word for word in words)
        done = self.vm.run(["sh", "-c", f"echo {cpu} {line} > /dev/attacker; cat /dev/attacker"], timeout=60)
        return [int(number) for number in done.stdout.split()] or None

    def number(self, *words: str | int) -> int:
        """What a command gives that gives one number."""
        found = self.attack(*words)
        assert found is not None
        assert len(found) == 1
        return found[0]

    @property
    def monitor(self) -> VeilMon:
        """VeilMon's program."""
        found = self.vm.machine.hosted_program(self.vm.hypervisor.vcpus[0].contexts[0].vmcb.vmsa_pa)
        assert isinstance(found, VeilMon)
        return found

    def block(self, vcpu: int) -> int:
        """GPA of the request block that the driver has on a VCPU."""
        return self.monitor.state.blocks[vcpu][0]

    def store(self, way: str, target: int, steps: str) -> list[int] | None:
        """Each step's result: 0 or EFAULT."""
        return self.attack("store", way, target, steps)

    def sh(self, command: str) -> tuple[int, str]:
        """Exit status and what it said."""
        done = self.vm.run(["sh", "-c", command], timeout=120)
        return done.exit_status, (done.stdout + done.stderr).decode()

    def module_text(self, name: str) -> int:
        """Where the text of a module of the distribution's begins, which is loaded."""
        status, line = self.sh(f"grep -q ^{name} /proc/modules || insmod /root/{name}.ko; grep ^{name} /proc/modules")
        assert status == 0
        return int(line.split()[5], 16)

    def put(self, name: str, data: bytes, folder: Path) -> None:
        """As /root/NAME.ko."""
        (folder / f"{name}.ko").write_bytes(data)
        self.vm.copy_in(folder / f"{name}.ko", f"/root/{name}.ko")

    def violations(self) -> list[CodeWord]:
        """As the log has them."""
        return [word for word in self.words() if word.event == CodeEvent.VIOLATION]

    def text(self, address: int, size: int) -> bytes:
        """The kernel's memory, as VMPL 0 sees it."""
        return RunningKernel(self.vm).read(address, size)


class Resume(Protocol):
    """The fixture `resume`."""

    def __call__(self, mode: str = ...) -> CodeGuest: ...
