# SPDX-License-Identifier: GPL-2.0-or-later
"""The model's chip and its certificates, looked at with openssl as well."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from tests.snp.chip import chip
from veil.formats.attestation_report import TcbVersion
from veil.formats.certificate_table import ARK, ASK, VCEK, parse_certificates
from veil.snp import MODEL_TCB, SnpError, endorsement
from veil.snp.endorsement import CHIP_ID_MARK, Endorsement

PEM = serialization.Encoding.PEM
OPENSSL = shutil.which("openssl")


def test_says_that_it_is_software() -> None:
    made = chip()
    assert made.chip_id.startswith(CHIP_ID_MARK)
    assert len(made.chip_id) == 64
    for certificate in (made.ark, made.ask, made.vcek):
        assert "Software machine" in certificate.subject.rfc4514_string()


def test_certificate_table() -> None:
    table = parse_certificates(chip().certificate_table)
    assert set(table) == {VCEK, ASK, ARK}
    assert table[VCEK] == chip().vcek.public_bytes(serialization.Encoding.DER)


@pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed (Debian: apt install openssl)")
def test_openssl_verifies_the_chain(tmp_path: Path) -> None:
    assert OPENSSL is not None
    made = chip()
    for name in ("ark", "ask", "vcek"):
        (tmp_path / f"{name}.pem").write_bytes(getattr(made, name).public_bytes(PEM))
    command = [OPENSSL, "verify", "-CAfile", "ark.pem", "-untrusted", "ask.pem", "vcek.pem"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "vcek.pem: OK\n", done.stderr
    show = [OPENSSL, "x509", "-in", "vcek.pem", "-noout", "-text"]
    text = subprocess.run(show, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "secp384r1" in text
    assert "rsassaPss" in text
    for oid in ("1.3.6.1.4.1.3704.1.2", "1.3.6.1.4.1.3704.1.3.8", "1.3.6.1.4.1.3704.1.4"):
        assert oid in text
    # The counter-test: another root's certificate is not good enough.
    other = Endorsement.certified(chip().ask_key, chip().ark_key, MODEL_TCB)
    (tmp_path / "ark.pem").write_bytes(other.ark.public_bytes(PEM))
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode != 0


def test_one_chip_for_an_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endorsement, "_RSA_BITS", 2048)  # sooner made
    directory = tmp_path / "data" / "machine"
    made: list[Endorsement] = []
    threads = [threading.Thread(target=lambda: made.append(Endorsement.load(directory, MODEL_TCB))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = Endorsement.load(directory, MODEL_TCB)
    assert {item.chip_id for item in [*made, again]} == {again.chip_id}
    assert {item.ark for item in made} == {again.ark}
    assert again.chip_secret == made[0].chip_secret
    assert directory.stat().st_mode & 0o777 == 0o700
    assert all(file.stat().st_mode & 0o077 == 0 for file in directory.iterdir())


def test_another_tcb_has_another_vcek(tmp_path: Path) -> None:
    chip()._save(tmp_path / "machine")
    first = Endorsement.load(tmp_path / "machine", MODEL_TCB)
    newer = Endorsement.load(tmp_path / "machine", TcbVersion.of(boot_loader=2, snp=200, microcode=255))
    assert (first.chip_id, first.ark) == (newer.chip_id, newer.ark)
    assert first.vcek.public_key() != newer.vcek.public_key()


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"nonsense")])
@pytest.mark.parametrize("name", ["ark.pem", "ask.key", "chip.id"])
def test_damaged_keys(tmp_path: Path, name: str, damage: object) -> None:
    directory = tmp_path / "machine"
    chip()._save(directory)
    assert callable(damage)
    damage(directory / name)
    if name == "chip.id" and (directory / name).exists():
        pytest.skip("any bytes are a chip's ID")
    with pytest.raises(SnpError, match="remove the folder"):
        Endorsement.load(directory, MODEL_TCB)
