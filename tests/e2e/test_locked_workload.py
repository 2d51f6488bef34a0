# SPDX-License-Identifier: GPL-2.0-or-later
"""Ordinary work under lock-down: the kernel patches itself and loads its distribution's modules, and nothing is taken
for an attack."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from bench.audit.programs import PREPARE, PROGRAMS, program_files
from tests.e2e.locked_guest import LockedGuest
from tests.e2e.patching_workload import WORKLOAD
from tests.services.kci.modules.distribution import KINDS, kernel, module_path, with_dependencies
from veil.cache import Cache
from veil.cvm import ConfidentialVM
from veil.formats.kci_status import KciStatus
from veil.guest.initramfs.archive import Node
from veil.guest.initramfs.debian_programs import debian_programs
from veil.guest.linux.kernel import debian_kernel
from veil.guest.linux.modules import collect_modules, present_modules
from veil.image.services_image import services_from_text

LOCKED = services_from_text(["kci:mode=on"])
#: What the kernel asks for by itself (request_module), and what the commands ask for.
NEEDED = ("loop", "overlay", "nf_tables", "nfnetlink", "nft_masq", "nft_ct", "nft_chain_nat", "dm-mod", "zram", "dummy",
          "virtio_scsi", "virtio_balloon", "virtio_blk", "virtio_net")  # fmt: skip
MORE = (
    "veth", "bridge", "8021q", "macvlan", "tun", "sch_htb", "act_mirred", "tcp_dctcp", "vsock_loopback", "dm-snapshot",
    "dm-crypt", "raid1", "lz4", "algif_hash", "binfmt_misc", "scsi_debug", "msr", "cpuid", "udf", "erofs", "exfat",
    "sctp", "ip_set", "openvswitch", "nvme-tcp", "ena",
)  # fmt: skip
#: For kernels of other suites.
SOME = ("veth", "bridge", "tun", "dm-crypt", "raid1", "xfs", "exfat", "nls_cp437", "wireguard", "ip_set")
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}

MOUNTS = """set -e
mkdir -p /tmp/a /tmp/b /tmp/e /tmp/o
mount -t tmpfs none /tmp/a; mount --bind /tmp/a /tmp/b
dd if=/dev/zero of=/tmp/a/image bs=1M count=8 2>/dev/null
/sbin/modprobe loop; losetup /dev/loop0 /tmp/a/image; mke2fs /dev/loop0 >/dev/null
mount -t ext4 /dev/loop0 /tmp/e; cp /bin/busybox /tmp/e/; cmp /bin/busybox /tmp/e/busybox; umount /tmp/e
losetup -d /dev/loop0
mkdir /tmp/a/upper /tmp/a/work
mount -t overlay -o lowerdir=/etc,upperdir=/tmp/a/upper,workdir=/tmp/a/work none /tmp/o
echo x >/tmp/o/passwd; umount /tmp/o
unshare -m -u -i -n -p -f sh -c 'ip link set lo up; ping -c1 127.0.0.1' >/dev/null
"""
NFTABLES = """set -e
ip link set lo up
nft add table inet t
nft add chain inet t c '{ type filter hook input priority 0; policy accept; }'
nft add rule inet t c ct state established,related counter accept
nft add table ip n
nft add chain ip n p '{ type nat hook postrouting priority 100; }'
nft add rule ip n p oifname != lo masquerade
ping -c1 127.0.0.1 >/dev/null
nft list ruleset | grep -q masquerade
nft flush ruleset
"""
SYSCTLS = """
for name in kernel.sched_schedstats net.ipv4.ip_forward kernel.task_delayacct kernel.timer_migration \
  vm.overcommit_memory kernel.bpf_stats_enabled net.core.netdev_tstamp_prequeue; do
  old=$(sysctl -n $name) || continue
  for value in 0 1 $old; do sysctl -q -w $name=$value || exit 1; done
done
"""
#: Software clock, its samples, and the tracepoint of system calls: what perf stat and perf record do without a PMU.
PERF = "/bin/perf_events $(cat /tmp/trace/events/raw_syscalls/sys_enter/id)"
#: All modules that nobody needs, again and again.
LEAVE = """
for turn in 1 2 3 4 5 6; do
  for name in $(awk '$3 == 0 && $1 != "veil" {print $1}' /proc/modules); do rmmod $name 2>/dev/null; done
done
grep -c . /proc/modules
"""
#: All that depmod finds, each with what it needs, and out again; says how many came.
MODULES = (
    """
cd /lib/modules/*/ && for name in %s; do /sbin/modprobe $name || exit 1; done
grep -c . /proc/modules
"""
    + LEAVE
)


def _files(modules: tuple[str, ...]) -> dict[str, Node]:
    """An ordinary modprobe, nft, and modules as the distribution has them: compressed."""
    tree, release = kernel().modules, kernel().release
    assert tree is not None
    place = f"lib/modules/{release}"
    files = debian_programs(Cache(), ["nftables", "kmod"], ["usr/sbin/nft", "bin/kmod"])
    files |= {f"sbin/{name}": Node.link("/bin/kmod") for name in ("modprobe", "depmod")}
    for name in with_dependencies(modules):
        path = module_path(name)
        files[f"{place}/{path.relative_to(tree)}"] = Node.file(path.read_bytes())
    return files | {f"{place}/modules.{name}": Node.file(b"") for name in ("order", "builtin")}


def _perf_events(folder: Path) -> dict[str, Node]:
    program = folder / "perf_events"
    source = Path(__file__).parent / "perf_events" / "perf_events.c"
    subprocess.run(["cc", "-static", "-O1", "-o", str(program), str(source)], check=True, capture_output=True)
    return {"bin/perf_events": Node.file(program.read_bytes(), 0o755)}


class _Guest(LockedGuest):
    def sh(self, script: str, timeout: float = 240) -> str:
        done = self.vm.run(["sh", "-c", script], env=_ENVIRONMENT, timeout=timeout)
        assert done.exit_status == 0, (done.stdout + done.stderr).decode()
        return done.stdout.decode()

    def quiet(self) -> KciStatus:
        """The status, in which nothing was taken for an attack."""
        status = self.status()
        assert (status.violations, status.refused, status.words) == (0, 0, [])
        return status


@pytest.fixture
def boot() -> Iterator[Callable[..., _Guest]]:
    made: list[ConfidentialVM] = []

    def make(files: Mapping[str, Node], memory: str = "512M", vcpus: int = 2, kernel: str | None = None) -> _Guest:
        vm = ConfidentialVM(memory, vcpus, services=LOCKED, files=files, kernel=kernel, fresh=True)
        made.append(vm)
        vm.start()
        return _Guest(vm)

    yield make
    for vm in made:
        vm.close()


@pytest.mark.soak
def test_ordinary_work_is_no_attack(boot: Callable[..., _Guest], tmp_path: Path) -> None:
    guest = boot(_files(NEEDED) | _perf_events(tmp_path))
    guest.sh("/sbin/depmod -a")
    assert "traced" in guest.sh(WORKLOAD)
    for script in (MOUNTS, NFTABLES, SYSCTLS):
        guest.sh(script)
    assert guest.sh(PERF) == "clock 1 samples 1 calls 1\n"
    status = guest.quiet()
    assert {"overlay", "nf_tables", "nft_masq", "loop"} <= {module.name for module in status.modules}
    for kind in ("jump label", "static call", "static call trampoline"):
        assert len(status.patches[kind]) > 10, kind


@pytest.mark.soak
@pytest.mark.parametrize("vcpus", [1, 2])
def test_modules_of_many_kinds(boot: Callable[..., _Guest], vcpus: int) -> None:
    names = (*NEEDED, *MORE, *(name for name in KINDS if name not in ("xfs", "btrfs", "kvm")))
    guest = boot(_files(names), memory="1G", vcpus=vcpus)
    guest.sh("/sbin/depmod -a")
    before = {module.name for module in guest.quiet().modules}
    loaded, left = guest.sh(MODULES % " ".join(NEEDED + MORE), timeout=1800).split()
    assert int(loaded) > 45 > int(left)
    # SCTP stays, with what it needs.
    stays = {"sctp", "libcrc32c", "udp_tunnel", "ip6_udp_tunnel"}
    assert {module.name for module in guest.quiet().modules} <= before | stays


@pytest.mark.soak
def test_the_programs_of_the_logs_evaluation(boot: Callable[..., _Guest]) -> None:
    guest = boot(program_files(Cache()), memory="768M")
    guest.sh(PREPARE)
    for program in PROGRAMS:
        guest.sh(program.command[2])
    guest.quiet()


@pytest.mark.soak
def test_debians_perf(boot: Callable[..., _Guest]) -> None:
    """Without a PMU: software events counted and sampled, tracepoints, and a probe at a function's beginning."""
    guest = boot(debian_programs(Cache(), ["linux-perf"], ["usr/bin/perf"]), memory="1G")
    guest.sh("mount -t tracefs none /sys/kernel/tracing")
    counted = guest.sh("perf stat -e task-clock,page-faults,raw_syscalls:sys_enter true 2>&1")
    assert re.search(r"[1-9]\d* +raw_syscalls:sys_enter", counted)
    guest.sh("perf record -q -e cpu-clock -F 99 -a -o /tmp/clock -- sh -c 'ls -R /sys/kernel >/dev/null'")
    assert "cpu-clock" in guest.sh("perf script -i /tmp/clock | tail -n 50", timeout=900)
    guest.sh("perf record -q -e sched:sched_switch -a -o /tmp/switches -- true")
    assert "prev_comm=" in guest.sh("perf script -i /tmp/switches | tail -n 50", timeout=900)
    guest.sh("perf probe -q --add do_sys_openat2", timeout=900)
    probed = guest.sh("perf stat -e probe:do_sys_openat2 ls 2>&1; perf probe -q --del do_sys_openat2", timeout=900)
    assert re.search(r"[1-9]\d* +probe:do_sys_openat2", probed)
    assert guest.quiet().patches["function entry"]


@pytest.mark.soak
@pytest.mark.parametrize(
    "series", ["6.12-amd64", "6.12/trixie", "6.12-amd64/trixie", "7.2/trixie-backports", "7.3/trixie-backports"]
)
def test_other_kernels(boot: Callable[..., _Guest], series: str) -> None:
    """They patch themselves, and their own modules come and go, each after what it needs."""
    kernel = debian_kernel(Cache(), series)
    assert kernel.modules is not None
    # The first is asked for by name at run time, and stands in no module's list.
    names = [name.replace("-", "_") for name in ("crc32c_generic", *NEEDED, *SOME)]
    modules = collect_modules(kernel.modules, present_modules(kernel.modules, names))
    assert len(modules) > 35
    files = {f"modules/{number:03}.ko": Node.file(data) for number, (_, data) in enumerate(modules)}
    guest = boot(files, kernel=series, memory="1G")
    before = guest.quiet()
    assert before.locked_ns is not None
    assert before.text_pages > 4000
    assert guest.sh("uname -r").strip() == kernel.release
    assert "traced" in guest.sh(WORKLOAD)
    assert sum(map(len, guest.quiet().patches.values())) > 100
    # Some are loaded already.
    guest.sh("for file in /modules/*; do insmod $file 2>/dev/null; done", timeout=900)
    there = {module.name for module in guest.quiet().modules}
    assert {name for name, _ in modules} <= there
    guest.sh(LEAVE, timeout=900)
    assert len(guest.quiet().modules) < len(there) - 25
