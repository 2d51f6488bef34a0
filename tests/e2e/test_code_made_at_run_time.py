# SPDX-License-Identifier: GPL-2.0-or-later
"""Code that Linux makes at run time: under lock-down it does without, or says that it cannot, and works on."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.e2e.code_attacks.hostile_files import resigned
from tests.e2e.log_guest import trust_in
from tests.e2e.snapshots import LOCKED_KERNEL, OPEN_KERNEL, Resume
from veil import installation
from veil.cache import Cache
from veil.cvm import ConfidentialVM
from veil.formats.kci_settings import OFF, ON
from veil.formats.kci_status import KciStatus
from veil.guest.driver.build import build_module
from veil.guest.initramfs.contents import fetch_busybox
from veil.guest.linux.kernel import debian_kernel
from veil.remote import ChannelClient
from veil.remote.kci.status import read_status

TRACED = "do_sys_openat2"
TRACING = "mount -t tracefs tracefs /sys/kernel/tracing; cd /sys/kernel/tracing"
#: Beyond the function's beginning, where no call of the tracer stands. Not every offset is one of an instruction.
MIDDLE = f"""
for at in $(seq 9 24); do
    said=$(echo "p:middle {TRACED}+$at" 2>&1 >kprobe_events) && echo works && break
    case "$said" in *"Cannot allocate memory"*) echo no memory; break;; esac
done"""
#: A filter that returns a number, compiled if the kernel does so, and run; and a place for a trampoline of BPF's.
FILTER = b"""
#include <linux/filter.h>
#include <linux/kprobes.h>
#include <linux/module.h>
static bool has_trampoline(void)
{
	struct kprobe found = { .symbol_name = "arch_alloc_bpf_trampoline", .flags = KPROBE_FLAG_DISABLED };
	void *(*get)(unsigned int size);

	if (register_kprobe(&found))
		return false;
	get = (void *)found.addr;
	unregister_kprobe(&found);
	return get(64);
}
static int __init filter_init(void)
{
	struct sock_filter code[] = { BPF_STMT(BPF_RET | BPF_K, 0x666) };
	struct sock_fprog_kern what = { .len = ARRAY_SIZE(code), .filter = code };
	struct bpf_prog *made;
	int error = bpf_prog_create(&made, &what);

	if (error)
		return error;
	pr_info("filter: compiled %d, returns %#x, trampoline %d\\n", made->jited, bpf_prog_run(made, NULL),
		has_trampoline());
	bpf_prog_destroy(made);
	return -ECANCELED;
}
module_init(filter_init);
MODULE_DESCRIPTION("A filter");
MODULE_LICENSE("GPL");
"""


@pytest.fixture(scope="module")
def bpf_filter() -> bytes:
    sources = {"filter.c": FILTER, "Kbuild": b"obj-m := filter.o"}
    return resigned(build_module(Cache(), debian_kernel(Cache()), "filter", sources))


def _entry() -> int:
    """Where in busybox's file its first instruction is."""
    data = fetch_busybox(Cache()).read_bytes()
    entry, headers = struct.unpack_from("<QQ", data, 24)
    (count,) = struct.unpack_from("<H", data, 56)
    for at in range(headers, headers + 56 * count, 56):
        kind, _, offset, address, _, size = struct.unpack_from("<IIQQQQ", data, at)
        if kind == 1 and address <= entry < address + size:
            return int(entry - address + offset)
    raise AssertionError


class Guest:
    """Whose policy allows the filter's module."""

    def __init__(self, resume: Resume, mode: str) -> None:
        self.vm: ConfidentialVM = resume(vcpus=2, services=LOCKED_KERNEL if mode == ON else OPEN_KERNEL)

    def sh(self, script: str) -> str:
        """What it says."""
        done = self.vm.run(["sh", "-c", script], timeout=120)
        assert done.exit_status == 0, done.stderr
        return done.stdout.decode()

    def status(self) -> KciStatus:
        """What VeilS-KCI says."""
        with ChannelClient(self.vm.user_transport(timeout=60), identity=installation.user_key()) as client:
            return read_status(client, trust_in(self.vm))

    def works(self, folder: Path) -> bool:
        """Static keys are switched, static calls too, and a module is loaded: all of it takes the lock of text."""
        ((_, loop),) = self.vm.kernel_modules(["loop"])
        (folder / "loop.ko").write_bytes(loop)
        self.vm.copy_in(folder / "loop.ko", "/root/loop.ko")
        traced = self.sh(f"""
            {TRACING}
            echo >trace; echo 1 >events/sched/sched_switch/enable; sleep 0.1; echo 0 >events/sched/sched_switch/enable
            grep -c sched_switch: trace
            insmod /root/loop.ko; rmmod loop
        """)
        return int(traced) > 0


@pytest.fixture(params=[ON, OFF])
def guest(request: pytest.FixtureRequest, resume: Resume) -> Guest:
    return Guest(resume, request.param)


@pytest.mark.parametrize("guest", [ON, pytest.param(OFF, marks=pytest.mark.soak)], indirect=True)
def test_tracers_do_without(guest: Guest, tmp_path: Path) -> None:
    """Probes at the beginning of functions and at their returns, the function tracer and that of calls all work: their
    calls go to code in the kernel's text."""
    said = guest.sh(f"""
        {TRACING}
        echo 'p:called {TRACED}' >kprobe_events; echo 'r:back {TRACED} $retval' >>kprobe_events
        echo 1 >events/kprobes/enable; cat /proc/version >/dev/null; echo 0 >events/kprobes/enable
        grep -c called: trace; grep -c back: trace; echo >kprobe_events
        echo {TRACED} >set_ftrace_filter; echo function >current_tracer
        cat /proc/version >/dev/null; grep -c '{TRACED} <-' trace; echo nop >current_tracer
        echo {TRACED} >set_graph_function; echo function_graph >current_tracer
        cat /proc/version >/dev/null; grep -c '{TRACED}()' trace; echo nop >current_tracer
    """)
    counts = [int(word) for word in said.split()]
    assert len(counts) == 4
    assert all(counts)
    # Probes of programs are in memory of theirs.
    said = guest.sh(f"""
        {TRACING}
        echo 'p:begins /bin/busybox:{_entry():#x}' >uprobe_events && echo 1 >events/uprobes/enable
        cat /proc/version >/dev/null; echo 0 >events/uprobes/enable; grep -c begins: trace
    """)
    assert int(said)
    assert guest.works(tmp_path)
    assert guest.status().violations == 0


def test_probes_elsewhere_are_refused(resume: Resume, tmp_path: Path) -> None:
    """Before the kernel takes a lock: nothing is stuck afterwards."""
    guest = Guest(resume, ON)
    assert guest.sh(f"{TRACING}; {MIDDLE}") == "no memory\n"
    assert guest.works(tmp_path)
    assert guest.status().violations == 0


def test_off_probes_elsewhere_work(resume: Resume) -> None:
    script = f"{MIDDLE}; echo 1 >events/kprobes/enable; cat /proc/version >/dev/null; grep -c middle: trace"
    works, count = Guest(resume, OFF).sh(f"{TRACING}; {script}").splitlines()
    assert works == "works"
    assert int(count)


def test_bpf_is_interpreted(guest: Guest, bpf_filter: bytes, tmp_path: Path) -> None:
    """Also when root switches its compiler on again."""
    (tmp_path / "filter.ko").write_bytes(bpf_filter)
    guest.vm.copy_in(tmp_path / "filter.ko", "/root/filter.ko")
    said = guest.sh("""
        echo 1 >/proc/sys/net/core/bpf_jit_enable && dmesg -c >/dev/null
        insmod /root/filter.ko 2>/dev/null; dmesg | grep -o 'filter: .*' | head -1
    """)
    made = int(guest.status().locked_ns is None)
    assert said == f"filter: compiled {made}, returns 0x666, trampoline {made}\n"
    assert guest.status().violations == 0


def test_a_processor_that_goes_stays_away(resume: Resume) -> None:
    """It would begin in the real-mode trampoline. (`test_kernels.py` has one that comes back without lock-down.)"""
    vm = resume(vcpus=2, services=LOCKED_KERNEL)
    online = "/sys/devices/system/cpu/cpu1/online"
    done = vm.run(["sh", "-c", f"echo 0 >{online} && echo 1 >{online}; nproc"], timeout=60)
    assert done.stdout == b"1\n"
    assert b"Operation not permitted" in done.stderr
    assert "CPU 1 stays offline" in vm.run(["dmesg"]).stdout.decode()
