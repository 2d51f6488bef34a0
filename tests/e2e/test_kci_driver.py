# SPDX-License-Identifier: GPL-2.0-or-later
"""What the driver tells VeilS-KCI of modules in a booted kernel: their files, their memory, and when they go."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import module_watcher
from tests.e2e.module_watcher import REFUSE, TEXT, TOLD, ModuleWatcher
from tests.e2e.snapshots import OPEN_KERNEL, Resume, RunSnapshots, halfway
from veil.cache import Cache
from veil.cvm import ConfidentialVM, Configuration
from veil.formats.kci import KCI_GUID, KCI_NAME, KernelCall
from veil.formats.kci_settings import ON, KciSettings
from veil.guest.driver.build import build_driver, build_module
from veil.guest.linux.kernel import DEFAULT_SERIES, debian_kernel
from veil.guest.linux.modules import collect_modules
from veil.image.services_image import PROTECTED_SERVICES, ServicesImage
from veil.remote import ChannelClient

PAGE = 4096


WATCHED = ServicesImage(
    "tests.e2e.module_watcher:Services",
    (*PROTECTED_SERVICES.packages, module_watcher.__name__),
    {**PROTECTED_SERVICES.settings, KCI_NAME: KciSettings(ON).measured()},
    PROTECTED_SERVICES.memory + module_watcher.MEMORY,
)


#: of the distribution's, of several kinds; what they depend on comes with them
MODULES = ["dm-mod", "loop", "zram", "dummy", "nf_tables", "xfs"]
#: Its init function fails, or not, as asked.
FICKLE = b"""
#include <linux/module.h>
#include <linux/moduleparam.h>
static int result;
module_param(result, int, 0);
static int __init fickle_init(void) { return result; }
module_init(fickle_init);
static void __exit fickle_exit(void) { }
module_exit(fickle_exit);
MODULE_DESCRIPTION("Fails if asked to");
MODULE_LICENSE("GPL");
"""


class Guest:
    """A guest whose service in VeilS-KCI's place is the test's."""

    def __init__(self, vm: ConfidentialVM, folder: Path) -> None:
        self.vm = vm
        self._folder = folder
        self.files: dict[str, bytes] = {}

    def sh(self, command: str, *, fails: bool = False) -> str:
        done = self.vm.run(["sh", "-c", command], timeout=120)
        assert bool(done.exit_status) == fails, (command, done.stderr)
        return done.stdout.decode()

    def ask(self, call: int, what: object = None) -> Any:
        with ChannelClient(self.vm.user_transport(timeout=20)) as client:
            return json.loads(client.request(KCI_GUID, call, json.dumps(what).encode()) or b"null")

    def text(self, size: int) -> bytes:
        """Of the module that was prepared last, as it was told then."""
        with ChannelClient(self.vm.user_transport(timeout=20)) as client:
            pages = (client.request(KCI_GUID, TEXT, json.dumps(at).encode()) for at in range(0, size, PAGE))
            return b"".join(bytes.fromhex(json.loads(page)) for page in pages)

    def told(self) -> list[dict[str, Any]]:
        return list(self.ask(TOLD))

    def forget(self) -> None:
        """What was told and refused before."""
        self.told()
        self.ask(REFUSE, [])

    def put(self, name: str, data: bytes) -> None:
        self.files[name] = data
        file = self._folder / f"{name}.ko"
        file.write_bytes(data)
        self.vm.copy_in(file, f"/root/{name}.ko")

    def kcore(self, address: int, size: int) -> bytes:
        """The kernel's memory as it says itself."""
        head = self._read("/proc/kcore", 0, PAGE)
        offset, count = struct.unpack_from("<Q", head, 32)[0], struct.unpack_from("<H", head, 56)[0]
        for at in range(offset, offset + 56 * count, 56):
            kind, _, place, virtual, _, _, length, _ = struct.unpack_from("<IIQQQQQQ", head, at)
            if kind == 1 and virtual <= address and address + size <= virtual + length:
                return self._read("/proc/kcore", place + address - virtual, size)
        raise AssertionError(f"{address:#x} is not in /proc/kcore")

    def _read(self, name: str, at: int, size: int) -> bytes:
        words = f"dd if={name} bs={PAGE} skip={at // PAGE} count={size // PAGE} 2>/dev/null"
        data = self.vm.run(["sh", "-c", words], timeout=60).stdout
        assert len(data) == size
        return data


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _begun(snapshots: RunSnapshots, vcpus: int = 2) -> Path:
    """A guest that loads its driver."""
    return snapshots.begun(Configuration.make(vcpus=vcpus, services=WATCHED))


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.soak), 2], ids=["1 VCPU", "2 VCPUs"])
def guest(
    request: pytest.FixtureRequest, snapshots: RunSnapshots, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guest]:
    cache = Cache()
    kernel = debian_kernel(cache, DEFAULT_SERIES)
    assert kernel.modules is not None
    with halfway(_begun(snapshots, request.param), WATCHED) as vm:
        vm.connect()
        guest = Guest(vm, tmp_path_factory.mktemp("modules"))
        for name, data in collect_modules(kernel.modules, MODULES):
            guest.put(name, data)
        guest.put("fickle", build_module(cache, kernel, "fickle", {"fickle.c": FICKLE, "Kbuild": b"obj-m := fickle.o"}))
        yield guest


def test_the_boot_tells_of_the_driver_itself_and_locks_down_once(guest: Guest) -> None:
    *told, lock = guest.told()
    driver, live = told[:2]
    assert lock["call"] == "LOCK_DOWN"
    assert [item["call"] for item in told] == ["MODULE_PREPARED", "MODULE_LIVE"] * (len(told) // 2)
    assert driver["file"] == digest(build_driver(Cache(), debian_kernel(Cache(), DEFAULT_SERIES)))
    assert driver["all_pages"]
    assert "INIT_TEXT" in driver["memory"]
    assert live["module"] == driver["module"]
    assert guest.sh("dmesg | grep 'veil: VeilS-KCI'").endswith("VeilS-KCI has locked the kernel down\n")
    assert guest.sh("cat /proc/sys/net/core/bpf_jit_enable") == "0\n"
    assert " locked 1" in guest.sh("grep ^kci /dev/veil")
    # Anybody else changes nothing, and the service does not even hear of it.
    guest.sh("echo 1 > /dev/veil-kci", fails=True)
    guest.sh("rmmod veil", fails=True)
    assert guest.told() == []


def test_modules_come_and_go(guest: Guest) -> None:
    guest.forget()
    names = [name for name in guest.files if name != "fickle"]
    for name in names:
        guest.sh(f"insmod /root/{name}.ko")
        prepared, live = guest.told()
        assert (prepared["call"], live["call"]) == ("MODULE_PREPARED", "MODULE_LIVE")
        assert prepared["file"] == digest(guest.files[name]), name
        assert [piece[0] for piece in prepared["pieces"]] == list(range(0, len(guest.files[name]), 1 << 20))
        assert live["module"] == prepared["module"]
        # What was named is the module's memory, as the kernel finds it at the module's addresses.
        assert prepared["all_pages"]
        address, size = prepared["memory"]["TEXT"]
        line = guest.sh(f"grep '^{name.replace('-', '_')} ' /proc/modules").split()
        assert int(line[5], 16) == address
        text = guest.kcore(address, size)
        told = guest.text(size)
        # A jump label of nf_tables changes when its own init function runs.
        different = [at for at in range(size) if text[at] != told[at]]
        assert len(different) <= (5 if name == "nf_tables" else 0), name
        assert "DATA" in prepared["memory"]
    for name in reversed(names):
        guest.sh(f"rmmod {name}")
        (gone,) = guest.told()
        assert gone["call"] == "MODULE_GONE"


def test_init_fails(guest: Guest) -> None:
    guest.forget()
    guest.sh("insmod /root/fickle.ko result=-19", fails=True)
    # busybox tries twice: finit_module(), then init_module().
    prepared, gone, *again = guest.told()
    assert [item["call"] for item in again] == ["MODULE_PREPARED", "MODULE_GONE"]
    assert (prepared["file"], gone["call"]) == (digest(guest.files["fickle"]), "MODULE_GONE")
    assert gone["module"] == prepared["module"]
    guest.sh("insmod /root/fickle.ko && rmmod fickle")
    assert [item["call"] for item in guest.told()] == ["MODULE_PREPARED", "MODULE_LIVE", "MODULE_GONE"]


def test_a_parameter_that_it_does_not_take(guest: Guest) -> None:
    guest.forget()
    guest.sh("insmod /root/fickle.ko result=many", fails=True)
    told = guest.told()
    assert [item["call"] for item in told[:2]] == ["MODULE_PREPARED", "MODULE_GONE"]


def test_what_the_service_refuses_does_not_load(guest: Guest) -> None:
    guest.forget()
    guest.ask(REFUSE, [digest(guest.files["fickle"])])
    guest.sh("dmesg -c >/dev/null")
    assert "not permitted" in guest.vm.run(["insmod", "/root/fickle.ko"]).stderr.decode()
    guest.sh("grep fickle /proc/modules", fails=True)
    assert {item["call"] for item in guest.told()} == {"MODULE_PREPARED"}
    assert "veil: module fickle is not admitted: VeilS-KCI refuses it (-1)" in guest.sh("dmesg")
    guest.ask(REFUSE, [])
    guest.sh("insmod /root/fickle.ko && rmmod fickle")


def test_a_file_that_is_no_module(guest: Guest) -> None:
    guest.forget()
    guest.sh("head -c 3000 /root/fickle.ko > /root/part.ko; insmod /root/part.ko", fails=True)
    assert guest.told() == []
    guest.sh("insmod /root/fickle.ko && rmmod fickle")


def test_many_at_once(guest: Guest) -> None:
    """Each module's memory is told of with the file that is its own."""
    guest.forget()
    names = ("dummy", "loop", "zram", "fickle", "dm_mod")
    needed = ("zsmalloc", "lz4_compress", "lz4hc_compress")
    guest.sh(" && ".join(f"insmod /root/{name}.ko" for name in needed))
    guest.told()
    loops = " ".join(
        f"(for i in 1 2 3 4; do insmod /root/{name}.ko && rmmod {name} || echo {name}; done) &" for name in names
    )
    assert guest.sh(f"{loops} wait") == ""
    told = guest.told()
    prepared = [item for item in told if item["call"] == "MODULE_PREPARED"]
    texts: dict[str, set[int]] = {}
    for item in prepared:
        texts.setdefault(item["file"], set()).add(item["memory"]["TEXT"][1])
    for name in names:
        mine = [item for item in prepared if item["file"] == digest(guest.files[name])]
        assert len(mine) == 4, name
        for item in mine:
            later = [other["call"] for other in told if other["module"] == item["module"]]
            assert later == ["MODULE_PREPARED", "MODULE_LIVE", "MODULE_GONE"], name
    assert all(len(sizes) == 1 for sizes in texts.values())
    guest.sh("rmmod " + " ".join(reversed(needed)))


def test_hooks_use_no_trampoline_but_the_kernels_own(guest: Guest) -> None:
    guest.sh("mount -t tracefs tracefs /sys/kernel/tracing")
    hooks = guest.sh("cat /sys/kernel/tracing/enabled_functions")
    assert {"audit_log_end", "load_module", "security_bprm_check"} <= set(re.findall(r"^(\w+) \(1\)", hooks, re.M))
    assert set(re.findall(r"tramp: (\w+)", hooks)) == {"ftrace_caller"}


def test_a_driver_that_is_refused_is_not_loaded(snapshots: RunSnapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is anything else, for nobody is there to ask."""
    monkeypatch.setattr(ModuleWatcher, "always_refused", {KernelCall.MODULE_PREPARED.name})
    with halfway(_begun(snapshots), WATCHED) as vm:
        vm.connect()
        log = vm.run(["dmesg"]).stdout.decode()
        assert "veil: module veil is not admitted: VeilS-KCI refuses it (-1)" in log
        assert b"veil " not in vm.run(["cat", "/proc/modules"]).stdout
        assert vm.run(["ls", "/dev/veil-kci"]).exit_status != 0


def test_a_lock_down_that_is_refused(snapshots: RunSnapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModuleWatcher, "always_refused", {KernelCall.LOCK_DOWN.name})
    with halfway(_begun(snapshots), WATCHED) as vm:
        vm.connect()
        log = vm.run(["dmesg"]).stdout.decode()
        assert log.count("veil: VeilS-KCI did not lock the kernel down (-1)") == 1
        assert b" locked 0" in vm.run(["cat", "/dev/veil"]).stdout


def test_without_the_option_there_is_nothing(resume: Resume) -> None:
    vm = resume(services=OPEN_KERNEL)
    done = vm.run(["sh", "-c", "ls /dev/veil-kci; cat /dev/veil; cat /proc/sys/net/core/bpf_jit_enable"])
    assert b"kci " not in done.stdout
    assert done.stdout.endswith(b"1\n")
    vm.run(["rmmod", "veil"])
    assert vm.run(["grep", "-c", "^veil ", "/proc/modules"]).stdout == b"0\n"
