# SPDX-License-Identifier: GPL-2.0-or-later
"""A CVM of an unusual configuration, saved and restored: it is the same, and behaves so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from veil import installation
from veil.cvm import ConfidentialVM, Configuration
from veil.cvm.plain_values import from_plain, to_plain
from veil.errors import VeilError
from veil.formats.log import LOG_GUID
from veil.formats.log_settings import LogSettings
from veil.guest.initramfs.archive import Node
from veil.host import DEFAULT_POLICY
from veil.image.services_image import PROTECTED_SERVICES, protected_services
from veil.remote import ChannelClient, Policy, RequestFailed, Trust, TrustedRoots, UserKey, attest
from veil.remote.log.reader import LogReader
from veil.snp.snapshot import read_snapshot, write_snapshot

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
        files={"etc/word": Node.file(b"unusual\n")},
    )
    default = Configuration()
    assert {
        item.name for item in fields(default) if getattr(default, item.name) == getattr(configuration, item.name)
    } == {"kernel", "monitor", "identity"}
    with ConfidentialVM(configuration, fresh=True) as vm:
        vm.snapshot(tmp_path / "one")
    with ConfidentialVM.restore(tmp_path / "one") as vm:
        assert vm.configuration == configuration
        vm.snapshot(tmp_path / "two")
    with ConfidentialVM.restore(tmp_path / "two") as vm:
        assert vm.configuration == configuration
        _behaves(vm, configuration, owner, reader)


def _behaves(vm: ConfidentialVM, configuration: Configuration, owner: UserKey, reader: UserKey) -> None:
    script = "cat /proc/cmdline /etc/word /sys/module/veil/parameters/log_heartbeat; nproc; ls /sys/module/nls_utf8"
    said = vm.run(["sh", "-c", script]).stdout.decode()
    assert "veil.word=unusual" in said
    assert "\nunusual\n700\n2\n" in said
    assert vm.build_image().digest() == vm.machine.secure_processor.measurement
    roots = TrustedRoots.amd().with_software_root(installation.software_root())
    demanded = Policy(measurement=(vm.machine.secure_processor.measurement,))
    installation_user = installation.user_key()
    for key in (owner, reader, installation_user):
        with ChannelClient(vm.user_transport(), identity=key) as client:
            outcome = attest(client, Trust(policy=demanded, roots=roots))
            outcome.raise_for_failure()
            report = outcome.verification.report
            assert (report.policy, report.host_data, report.version) == (_POLICY, _HOST_DATA, 2)
            log = LogReader(client, outcome.services[LOG_GUID])
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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"memory": 1 << 30}, "another memory than its machine has"),
        ({"policy": 0}, "another policy than"),
        ({"host_data": _HOST_DATA}, "another host data than"),
        ({"report_version": 5}, "another report version than"),
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
def test_a_configuration_that_somebody_wrote(booted: Path, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    def changed(data: bytes) -> bytes:
        return json.dumps(to_plain(from_plain(json.loads(data)) | change)).encode()

    with pytest.raises(VeilError, match=words) as caught:
        ConfidentialVM.restore(_change(booted, tmp_path / "changed", "configuration", changed))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["configuration", "host"])
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"map": 5}', b'{"map": [[[], 1]]}', b"[" * 100_000])
def test_nonsense_in_its_place(booted: Path, tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(VeilError) as caught:
        ConfidentialVM.restore(_change(booted, tmp_path / "changed", name, lambda _: data))
    assert "\n" not in str(caught.value)


def test_a_snapshot_of_another_configuration_is_not_used(tmp_path: Path) -> None:
    """A snapshot that somebody put into the cache is not taken for ours."""
    said: list[str] = []
    with ConfidentialVM() as vm:
        place = vm._snapshot_path()
    with ConfidentialVM(driver_options="log_heartbeat=700") as vm:
        other = vm._snapshot_path()
    assert place is not None
    assert other is not None
    assert place != other
    shutil.copyfile(other, place)
    with ConfidentialVM(progress=said.append) as vm:
        assert vm.boot_seconds is not None
        assert vm.run(["cat", "/sys/module/veil/parameters/log_heartbeat"]).stdout != b"700\n"
    assert any("another configuration" in line for line in said)
