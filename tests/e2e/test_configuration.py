# SPDX-License-Identifier: GPL-2.0-or-later
"""A CVM of an unusual configuration, saved and restored: it is the same, and behaves so."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.log_guest import trust_in
from tests.e2e.snapshots import OPEN_KERNEL, Resume, boots, keep_copy, linked_cache
from veil import installation
from veil.cvm import ConfidentialVM, Configuration
from veil.cvm.kept_snapshots import write_cvm
from veil.cvm.plain_values import from_plain, to_plain
from veil.errors import VeilError
from veil.formats.log_settings import LogSettings
from veil.guest.initramfs.archive import Node
from veil.host import DEFAULT_POLICY
from veil.image.services_image import PROTECTED_SERVICES, protected_services
from veil.remote import Attested, ChannelClient, RequestFailed, UserKey
from veil.remote.log.connect import open_log
from veil.snp.snapshot_file import read_snapshot, write_snapshot

_POLICY = DEFAULT_POLICY | 1 << 20  # one socket only
_HOST_DATA = bytes(range(32))


def test_everything_comes_back(tmp_path: Path) -> None:
    owner, reader = (UserKey.load(tmp_path / name) for name in ("owner.key", "reader.key"))
    configuration = Configuration(
        memory=384 << 20,
        vcpus=2,
        kernel_options=("loglevel=3", "veil.word=unusual"),
        modules=("nls_utf8",),
        owners=(owner.fingerprint,),
        readers=(reader.fingerprint,),
        policy=_POLICY,
        host_data=_HOST_DATA,
        report_version=2,
        services=protected_services(LogSettings(memory=1 << 20, full="drop")),
        driver_options="log_heartbeat=700",
        cpu_features=("xsave",),
        files={"etc/word": Node.file(b"unusual\n")},
    )
    default = Configuration()
    # Those of firmware, disks, networks, IGVM files and kernels without the driver have guests of their own
    # (test_stock_firmware.py, test_disks.py, test_network.py, image/test_igvm_image.py, test_kernels.py).
    elsewhere = {"firmware", "initrd", "append", "disks", "network", "igvm", "driver"}
    assert {
        item.name for item in fields(default) if getattr(default, item.name) == getattr(configuration, item.name)
    } == {"kernel", "monitor", "identity"} | elsewhere
    with ConfidentialVM(configuration, fresh=True) as vm:
        vm.snapshot(tmp_path / "one")
    with ConfidentialVM.restore(tmp_path / "one") as vm:
        assert vm.configuration == configuration
        vm.run(["touch", "/root/here"])
        vm.snapshot(tmp_path / "two")
    with ConfidentialVM.restore(tmp_path / "two") as vm:
        assert vm.configuration == configuration
        # And it is that guest, not another one that was started.
        assert vm.run(["ls", "/root"]).stdout == b"here\n"
        _behaves(vm, configuration, owner, reader)


def _behaves(vm: ConfidentialVM, configuration: Configuration, owner: UserKey, reader: UserKey) -> None:
    script = "cat /proc/cmdline /etc/word /sys/module/veil/parameters/log_heartbeat; nproc; ls /sys/module/nls_utf8; "
    script += "grep -w xsave /proc/cpuinfo"
    said = vm.run(["sh", "-c", script]).stdout.decode()
    assert "veil.word=unusual" in said
    assert "\nunusual\n700\n2\n" in said
    assert said.count(" xsave ") == 2
    assert vm.build_image().digest() == vm.machine.secure_processor.measurement
    installation_user = installation.user_key()
    for key in (owner, reader, installation_user):
        with ChannelClient(vm.user_transport(), identity=key) as client:
            attested: list[Attested] = []
            log = open_log(client, trust_in(vm), on_attested=attested.append)
            report = attested[0].verification.report
            assert (report.policy, report.host_data, report.version) == (_POLICY, _HOST_DATA, 2)
            if key is not installation_user:
                list(log.fetch())
            else:
                with pytest.raises(RequestFailed):
                    log.head()
            if key is owner:
                log.acknowledge()
            else:
                with pytest.raises(RequestFailed):
                    log.acknowledge()


def _change(old: Path, new: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    snapshot = read_snapshot(old)
    sections = dict(snapshot.sections)
    sections[name] = change(sections[name])
    write_snapshot(new, memory=snapshot.map_memory().buf, sections=sections)
    return new


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of a guest that has not begun: small, because a copy of all of its memory is made for each change. So
    its kernel is in it once."""
    path = tmp_path_factory.mktemp("launched") / "snapshot"
    with closing(ConfidentialVM("160M", services=OPEN_KERNEL)) as vm:
        vm.launch()
        write_cvm(path, vm.machine, vm.hypervisor, vm.configuration)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"memory": 1 << 30}, "another memory than its machine has"),
        ({"policy": 0}, "another policy than"),
        ({"host_data": _HOST_DATA}, "another host data than"),
        ({"report_version": 5}, "another report version than"),
        ({"cpu_features": ("xsave",)}, "another set of processor features than"),
        ({"vcpus": 9}, "1 to 4 VCPUs"),
        ({"vcpus": 2}, "snapshot: host.platform lacks apic 1"),
        (
            {"services": replace(PROTECTED_SERVICES, entry="os:system")},
            "wants to run 'os:system', which may not be resumed",
        ),
        ({"services": replace(PROTECTED_SERVICES, packages=("os",))}, "which may not be resumed here"),
        ({"services": {"entry": "os:system"}}, "configuration.services lacks"),
        ({"later": 1}, "'later', which this version does not know"),
    ],
)
def test_a_configuration_that_somebody_wrote(
    launched: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    def changed(data: bytes) -> bytes:
        return json.dumps(to_plain(from_plain(json.loads(data)) | change)).encode()

    with pytest.raises(VeilError, match=words) as caught:
        ConfidentialVM.restore(_change(launched, tmp_path / "changed", "configuration", changed))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["configuration", "host"])
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"map": 5}', b'{"map": [[[], 1]]}', b"[" * 100_000])
def test_nonsense_in_its_place(launched: Path, tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(VeilError) as caught:
        ConfidentialVM.restore(_change(launched, tmp_path / "changed", name, lambda _: data))
    assert "\n" not in str(caught.value)


def test_a_snapshot_of_another_configuration_is_not_used(booted: Path, resume: Resume, tmp_path: Path) -> None:
    """A snapshot that somebody put into the cache is not taken for ours."""
    cache = linked_cache(tmp_path / "cache")
    place = keep_copy(booted, Configuration.make(), cache)
    assert not boots(ConfidentialVM(cache=cache))
    said: list[str] = []
    resume(vcpus=2).snapshot(place)
    assert boots(ConfidentialVM(cache=cache, progress=said.append))
    assert any("another configuration" in line for line in said)
    assert not place.exists()
