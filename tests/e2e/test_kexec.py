# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel that starts another one (kexec): it is loaded, for it is data until then, and does not run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.e2e.locked_guest import LockedGuest
from tests.e2e.snapshots import LOCKED_KERNEL, OPEN_KERNEL, Resume
from veil.cache import Cache
from veil.cvm import ConfidentialVM
from veil.guest.linux.kernel import debian_kernel
from veil.host import GuestHung, NestedPageFault
from veil.snp.layouts import Vmsa

#: guest-physical, and identity mapped for it
_PLACE = 0x8000000
#: cli, hlt, jmp
_HALT = bytes.fromhex("faf4ebfd")
#: `kexec load`: a kernel of four bytes, which stops with interrupts off. `kexec file PATH`: a bzImage. `kexec go`: run
#: it. Says the error's number.
PROGRAM = r"""
#include <errno.h>
#include <fcntl.h>
#include <linux/kexec.h>
#include <linux/reboot.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	static const unsigned char halt[] = { HALT };
	struct kexec_segment segment = { halt, sizeof(halt), (void *)PLACE, 4096 };
	long result;

	if (argc == 3)
		result = syscall(SYS_kexec_file_load, open(argv[2], O_RDONLY), -1, 1L, "", KEXEC_FILE_NO_INITRAMFS);
	else if (!strcmp(argv[1], "load"))
		result = syscall(SYS_kexec_load, segment.mem, 1L, &segment, KEXEC_ARCH_X86_64);
	else
		result = syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, 0);
	printf("%d\n", result ? errno : 0);
	return 0;
}
"""


@pytest.fixture(scope="module")
def kexec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kexec")
    (folder / "kexec.c").write_text(PROGRAM)
    subprocess.run(
        [
            "cc",
            "-static",
            "-O1",
            f"-DPLACE={_PLACE:#x}",
            f"-DHALT={','.join(map(str, _HALT))}",
            "-o",
            folder / "kexec",
            folder / "kexec.c",
        ],
        check=True,
    )
    return folder / "kexec"


def _loaded(vm: ConfidentialVM, kexec: Path, how: str) -> int:
    """The error's number."""
    vm.copy_in(kexec, "/root/kexec")
    words = ["load"]
    if how == "file":
        kernel = debian_kernel(Cache()).bzimage
        assert kernel is not None
        vm.copy_in(kernel, "/root/vmlinuz")
        words = ["file", "/root/vmlinuz"]
    return int(vm.run(["/root/kexec", *words], timeout=120).stdout)


def _end(vm: ConfidentialVM) -> BaseException:
    """What the kernel ended by that was told to run the other one."""
    end, told = vm.hypervisor.kernel_end, list[BaseException]()
    end.is_outlived, end.on_end = True, told.append
    vm.run(["sh", "-c", "(sleep 0.1; exec /root/kexec go) </dev/null >/dev/null 2>&1 &"])
    vm.hypervisor.run(until=lambda: bool(told), timeout=120)
    return told[0]


@pytest.mark.parametrize("how", ["load", pytest.param("file", marks=pytest.mark.soak)])
def test_another_kernel_does_not_run(resume: Resume, kexec: Path, how: str) -> None:
    """The kernel ends: its handlers of exceptions are gone when it comes to the first page of unverified code."""
    vm = resume(vcpus=2, services=LOCKED_KERNEL)
    assert _loaded(vm, kexec, how) == 0
    assert isinstance(_end(vm), NestedPageFault)
    guest = LockedGuest(vm)
    assert guest.status().violations == 1
    assert "execution of what is not verified code" in guest.words()[-1].words


def test_off_another_kernel_runs(resume: Resume, kexec: Path) -> None:
    vm = resume(vcpus=2, services=OPEN_KERNEL)
    assert _loaded(vm, kexec, "load") == 0
    context = vm.hypervisor.vcpus[0].contexts[3].vmcb.vmsa_pa
    assert isinstance(_end(vm), GuestHung)
    # It is that kernel which halted, and not the first one on its way to it.
    halted = _PLACE + _HALT.index(0xF4) + 1
    assert vm.machine.view(vmpl=0).read_u64(context + Vmsa.rip.offset) == halted
