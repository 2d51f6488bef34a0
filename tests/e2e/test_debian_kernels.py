# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels of Debian's suites, each with the driver that its own compiler makes, and the protected services at work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.enclave_images import EXIT, PRINT, enclave_image
from tests.e2e.locked_guest import LockedGuest
from tests.e2e.log_guest import log_reader, records_of
from veil.cache import Cache
from veil.cvm import ConfidentialVM
from veil.formats.log import EntryKind
from veil.guest.driver.build import build_module
from veil.guest.initramfs.archive import Node
from veil.guest.linux.kernel import debian_kernel
from veil.image.services_image import services_from_text
from veil.remote.log.audit_rules import load_rules

_SERVICES = services_from_text(["kci:mode=on", "enc:mode=on"])
_RULES = b"-D\n-b 0\n-e 1\n-a always,exit -F arch=b64 -S execve -k exec\n"
_STRANGER = {
    "stranger.c": b"""#include <linux/module.h>
static int __init begin(void) { return 0; }
module_init(begin);
MODULE_LICENSE("GPL");
""",
    "Kbuild": b"obj-m := stranger.o\n",
}


@pytest.mark.soak
@pytest.mark.parametrize(
    "series",
    [
        "6.12/trixie",
        "6.12-amd64/trixie",
        "7.2/trixie-backports",
        "7.3/trixie-backports",
        "7.3-amd64/trixie-backports",
        "7.2/sid",
    ],
)
def test_all_services_with_the_kernels_own_driver(series: str, tmp_path: Path) -> None:
    kernel = debian_kernel(Cache(), series)
    stranger = build_module(Cache(), kernel, "stranger", _STRANGER)
    files = {"stranger.ko": Node.file(stranger)}
    memory = "1G" if "-amd64" in series else "512M"
    with ConfidentialVM(memory, kernel=series, services=_SERVICES, files=files, fresh=True) as vm:
        assert vm.run(["uname", "-r"]).stdout.decode().strip() == kernel.release
        (tmp_path / "test.enclave").write_bytes(enclave_image(PRINT + EXIT(7)))
        result = vm.run_enclave(tmp_path / "test.enclave", (), timeout=60)
        assert (result.stdout, result.stderr, result.exit_status) == (b"hello\n", b"", 7)
        guest = LockedGuest(vm)
        status = guest.status()
        assert status.locked_ns is not None, guest.words()
        assert status.text_pages > 4000
        assert "veil" in {module.name for module in status.modules}
        assert vm.run(["insmod", "/stranger.ko"]).exit_status != 0
        assert guest.status().refused > 0
        reader = log_reader(vm, timeout=60)
        load_rules(reader, _RULES, seconds=120, wait=vm.wait)
        vm.run(["/bin/echo", "said-in-the-guest"])
        entries = list(reader.fetch())
        assert any(b'a1="said-in-the-guest"' in record.text for record in records_of(entries))
        # The hooks in the kernel's own functions are there, too.
        assert any(b"op=exec" in record.text for record in records_of(entries, EntryKind.INTENT))
        log = vm.run(["dmesg"]).stdout.decode()
        assert "WARNING:" not in log
        assert "BUG:" not in log
