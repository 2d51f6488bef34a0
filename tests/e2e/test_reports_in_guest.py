# SPDX-License-Identifier: GPL-2.0-or-later
"""The stock kernel's own attestation interfaces: configfs-tsm and /dev/sev-guest, with an honest and a hostile host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from veil import installation
from veil.cli.main import veil as cli
from veil.cvm import ConfidentialVM
from veil.formats.attestation_report import AttestationReport
from veil.formats.services_manifest import CHANNEL_SERVICE, attested_report_data, parse_manifest
from veil.remote import ChannelClient, Policy, Trust, TrustedRoots, attest
from veil.services.protected import ProtectedServices

#: The kernel's own level; without it, level 0 is asked for, which is refused.
_OWN = "echo 3 > privlevel"
TSM = "/sys/kernel/config/tsm/report"

IOCTL = r"""
#include <fcntl.h>
#include <linux/sev-guest.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

/* report VMPL, or key VMPL: prints errno, the secure processor's status, and what came (hexadecimal). */
int main(int argc, char **argv)
{
	struct snp_guest_request_ioctl call = { .msg_version = 1 };
	static struct snp_report_req report;
	static struct snp_derived_key_req key;
	static union { struct snp_report_resp report; struct snp_derived_key_resp key; } answer;
	int device = open("/dev/sev-guest", O_RDWR), size, status;
	int wants_key = argc > 1 && !strcmp(argv[1], "key");

	report.vmpl = key.vmpl = atoi(argv[2]);
	memset(report.user_data, 0x5a, sizeof(report.user_data));
	call.req_data = wants_key ? (__u64)&key : (__u64)&report;
	call.resp_data = (__u64)&answer;
	status = ioctl(device, wants_key ? SNP_GET_DERIVED_KEY : SNP_GET_REPORT, &call);
	printf("%d %u ", status, *(unsigned *)&answer);
	size = wants_key ? 64 : 1216;
	for (int i = 32; i < size; i++)
		printf("%02x", ((unsigned char *)&answer)[i]);
	return 0;
}
"""


def sh(vm: ConfidentialVM, script: str) -> bytes:
    done = vm.run(["sh", "-ec", script])
    assert done.exit_status == 0, done.stderr
    return done.stdout


def ask(vm: ConfidentialVM, nonce: bytes, *settings: str, name: str = "r") -> None:
    lines = [f"cd {TSM}", f"mkdir -p {name}", f"cd {name}", *settings, "cat > inblob"]
    done = vm.run(["sh", "-ec", "\n".join(lines)], stdin=nonce)
    assert done.exit_status == 0, done.stderr


def verify(tmp_path: Path, report: bytes, table: bytes, *options: str) -> tuple[int, str]:
    for file, data in (("report", report), ("table", table), ("root", installation.software_root())):
        (tmp_path / file).write_bytes(data)
    arguments = ["verify", str(tmp_path / "report"), "--certificates", str(tmp_path / "table"), *options]
    done = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert done.exception is None, done.exception
    return int(done.return_value), done.output


def test_own_level(vm: ConfidentialVM, tmp_path: Path) -> None:
    nonce = os.urandom(64)
    ask(vm, nonce, _OWN)
    report, table = sh(vm, f"cat {TSM}/r/outblob"), sh(vm, f"cat {TSM}/r/auxblob")
    assert sh(vm, f"cat {TSM}/r/provider {TSM}/r/privlevel_floor") == b"sev_guest\n3\n"
    (tmp_path / "policy.toml").write_text("vmpl = 3\n")
    options = ["--report-data", nonce.hex(), "--measurement", vm.machine.secure_processor.measurement.hex()]
    options += ["--policy", str(tmp_path / "policy.toml")]
    status, output = verify(tmp_path, report, table, *options, "--software-root", str(tmp_path / "root"))
    assert (status, "verified; machine: software" in output) == (0, True)
    # The counter-test: without the word that a software machine will do, and with another nonce.
    status, output = verify(tmp_path, report, table, *options)
    assert (status, "FAIL  root" in output) == (1, True)
    options[1] = bytes(64).hex()
    status, output = verify(tmp_path, report, table, *options, "--software-root", str(tmp_path / "root"))
    assert (status, "FAIL  report data" in output) == (1, True)


def test_level_0_through_the_monitor(vm: ConfidentialVM, tmp_path: Path) -> None:
    nonce = os.urandom(64)
    ask(vm, nonce, "echo svsm > service_provider")
    report, manifest = sh(vm, f"cat {TSM}/r/outblob"), sh(vm, f"cat {TSM}/r/manifestblob")
    table = sh(vm, f"cat {TSM}/r/auxblob")
    (tmp_path / "policy.toml").write_text("vmpl = 0\n")
    bound = attested_report_data(nonce, manifest).hex()
    options = ["--software-root", str(tmp_path / "root"), "--policy", str(tmp_path / "policy.toml"), "--report-data"]
    assert verify(tmp_path, report, table, *options, bound)[0] == 0
    # What the kernel was given is what VeilMon's channel proves to have: a user may come through either.
    with ChannelClient(vm.user_transport()) as client:
        services = parse_manifest(manifest)
        assert set(services) == {CHANNEL_SERVICE, *(service.guid for service in ProtectedServices.service_types)}
        assert services[CHANNEL_SERVICE] == client.server_key
    ask(vm, nonce, "echo svsm > service_provider", f"echo {CHANNEL_SERVICE} > service_guid", name="one")
    single, key = sh(vm, f"cat {TSM}/one/outblob"), sh(vm, f"cat {TSM}/one/manifestblob")
    assert key == client.server_key
    assert AttestationReport.parse(single).report_data == attested_report_data(nonce, key)


def test_more_privileged_levels_are_refused(vm: ConfidentialVM, tmp_path: Path) -> None:
    """By the kernel's interface, and by the secure processor for anyone who goes past it."""
    assert vm.run(["sh", "-c", f"mkdir {TSM}/r && echo 0 > {TSM}/r/privlevel"]).exit_status != 0
    (tmp_path / "ioctl.c").write_text(IOCTL)
    build = ["cc", "-static", "-O1", "-o", str(tmp_path / "ioctl"), str(tmp_path / "ioctl.c")]
    subprocess.run(build, check=True, capture_output=True)
    vm.copy_in(tmp_path / "ioctl", "/root/ioctl")
    for what in ("report", "key"):
        for vmpl in range(4):
            status, code, data = sh(vm, f"/root/ioctl {what} {vmpl}").split()
            assert status == b"0"
            allowed = vmpl == 3
            assert int(code) == (0 if allowed else 0x16)
            assert any(bytes.fromhex(data.decode())) == allowed
    report = AttestationReport.parse(bytes.fromhex(sh(vm, "/root/ioctl report 3").split()[2].decode())[:1184])
    assert report.report_data == b"\x5a" * 64
    assert sh(vm, "/root/ioctl key 3") == sh(vm, "/root/ioctl key 3")


# The host carries the kernel's messages

Carrier = Callable[[bytes], tuple[int, bytes]]


_ATTACKS = ["replayed answer", "changed answer", "truncated answer", "withheld", "lost request"]


@pytest.mark.parametrize("attack", _ATTACKS)
def test_hostile_carrier_of_the_kernels_messages(
    vm: ConfidentialVM, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel notices and gives its key up; VeilMon's key is another, and its messages go on."""
    processor = vm.machine.secure_processor
    honest: Carrier = processor.guest_request
    ask(vm, bytes(64), _OWN)
    old: list[bytes] = []

    def record(request: bytes) -> tuple[int, bytes]:
        status, answer = honest(request)
        old.append(answer)
        return status, answer

    monkeypatch.setattr(processor, "guest_request", record)
    sh(vm, f"cat {TSM}/r/outblob")
    attacks: dict[str, Carrier] = {
        "replayed answer": lambda request: (0, old[0]),
        "changed answer": lambda request: (0, _flip(honest(request)[1])),
        "truncated answer": lambda request: (0, honest(request)[1][:200].ljust(4096, b"\0")),
        "withheld": lambda request: (honest(request)[0], b""),
        "lost request": lambda request: (0x16, b""),
    }
    monkeypatch.setattr(processor, "guest_request", attacks[attack])
    ask(vm, b"\x01" * 64, _OWN)
    assert vm.run(["cat", f"{TSM}/r/outblob"]).exit_status != 0
    monkeypatch.setattr(processor, "guest_request", honest)
    ask(vm, b"\x02" * 64, _OWN)
    assert vm.run(["cat", f"{TSM}/r/outblob"]).exit_status != 0, "the kernel used its key again"
    assert b"Disabling VMPCK" in sh(vm, "dmesg") or b"isabling vmpck" in sh(vm, "dmesg")
    roots = TrustedRoots.amd().with_software_root(installation.software_root())
    with ChannelClient(vm.user_transport()) as client:
        attest(client, Trust(policy=Policy(measurement=(processor.measurement,)), roots=roots)).raise_for_failure()


def _flip(page: bytes) -> bytes:
    return page[:0x100] + bytes((page[0x100] ^ 1,)) + page[0x101:]
