# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's own programs in the guest."""

from __future__ import annotations

from tests.e2e.snapshots import Resume
from veil.cvm import ConfidentialVM, Configuration
from veil.cvm.configuration import Settings
from veil.guest.initramfs.archive import Node


def test_auditctl_runs(resume: Resume, audit_guest: Settings) -> None:
    vm = resume(**audit_guest)
    version = vm.run(["auditctl", "-v"])
    assert version.stdout.startswith(b"auditctl version 3."), version
    added = vm.run(["auditctl", "-a", "always,exit", "-F", "arch=b64", "-S", "execve", "-k", "exec"])
    assert (added.exit_status, added.stderr) == (0, b"")
    assert vm.run(["auditctl", "-l"]).stdout == b"-a always,exit -F arch=b64 -S execve -F key=exec\n"
    with_programs = vm.machine.secure_processor.measurement
    assert ConfidentialVM(Configuration.make(**audit_guest)).build_image().digest() == with_programs
    without = Configuration.make(services=audit_guest["services"])
    assert ConfidentialVM(without).build_image().digest() != with_programs


def test_snapshots_are_of_the_same_files() -> None:
    first, again, other = (
        ConfidentialVM(files={"etc/word": Node.file(word)})._snapshot_path() for word in (b"one", b"one", b"two")
    )
    assert first == again != other
    assert ConfidentialVM()._snapshot_path() not in (first, other)
