# SPDX-License-Identifier: GPL-2.0-or-later
"""`veil demo`, and what its intruder really does to the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.e2e.log_guest import log_reader, records_of
from veil.cli.main import veil as cli
from veil.cvm import ConfidentialVM
from veil.formats.log import EntryKind
from veil.remote.log.audit_rules import default_rules, load_rules


def sh(vm: ConfidentialVM, script: str) -> str:
    return vm.run(["/bin/sh", "-c", script]).stdout.decode()


@pytest.mark.usefixtures("kept")
def test_demonstration() -> None:
    done = CliRunner().invoke(cli, ["demo"], standalone_mode=False)
    assert done.exception is None, done.output
    assert "all of them are here, and proven" in done.output
    assert 'op=module comm="insmod" source=file file="/root/intruder.ko"' in done.output
    assert "stay proven as they are" in done.output


def test_the_intruder_hides_everything_that_the_kernel_has(vm: ConfidentialVM, tmp_path: Path) -> None:
    """The counter-test: without VeilS-LOG nothing of what happened is left."""
    reader = log_reader(vm)
    load_rules(reader, default_rules(), wait=vm.wait)
    sh(vm, "echo x >/etc/backdoor")
    before = list(reader.fetch())
    lines = int(sh(vm, "dmesg | grep -c 'audit: type='"))
    assert lines > 0
    (tmp_path / "intruder.ko").write_bytes(vm.build_intruder())
    vm.copy_in(tmp_path / "intruder.ko", "/root/intruder.ko")
    sh(vm, "insmod /root/intruder.ko; echo y >/etc/after")
    assert sh(vm, "dmesg | grep 'audit: type=13'") == ""
    assert "enabled 0" in sh(vm, "auditctl -s")
    after = list(reader.fetch())
    # The user's own tree goes on from what it had: nothing before was changed, or this had failed.
    assert after[0].sequence == before[-1].sequence + 1
    announced = [item.sequence for item in after if item.kind == EntryKind.INTENT and b"intruder.ko" in item.body]
    (forged,) = [item.sequence for item in after for record in records_of([item]) if b"somebody-else" in record.text]
    assert announced[0] < forged
    assert not any(b"/etc/after" in record.text for record in records_of(after))
    assert any(b"/etc/backdoor" in record.text for record in records_of(before))
