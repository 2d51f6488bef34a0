# SPDX-License-Identifier: GPL-2.0-or-later
"""veil verify: what it reads, what it prints, and its exit statuses."""

from __future__ import annotations

import base64
import datetime
import hashlib
import io
import json
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from tests.remote.attestation.model_chain import MODEL
from veil.cli import main
from veil.formats.certificate_table import ARK, ASK, VCEK, pack_certificates

VECTORS = Path(__file__).parents[3] / "shared" / "vectors"
_AT = ("--at", "2026-06-01")


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


class _Files:
    """A report of the model's and what belongs to it; `veil` runs the command among them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._folder, self._monkeypatch, self._capfd = folder, monkeypatch, capfd
        monkeypatch.chdir(folder)
        self.write("report", MODEL.report())
        self.write("vcek", _der(MODEL.leaf))
        self.write("chain", MODEL.intermediate.public_bytes(Encoding.PEM) + MODEL.root.public_bytes(Encoding.PEM))
        self.write("root", _der(MODEL.root))
        self.write("bad", b"hello")
        self.write("page", b"<html>404 none</html>\n")

    def write(self, name: str, data: bytes) -> None:
        (self._folder / name).write_bytes(data)

    def veil(self, *arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        """Status, stdout, stderr."""
        self._monkeypatch.setattr("sys.argv", ["veil", "verify", *arguments])
        self._monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0), *self._capfd.readouterr()


_GOOD = ("report", "--vcek", "vcek", "--chain", "chain", "--software-root", "root", *_AT)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> _Files:
    return _Files(tmp_path, monkeypatch, capfd)


def test_verified(files: _Files) -> None:
    status, out, err = files.veil(*_GOOD)
    assert (status, err) == (0, "")
    assert all(line.startswith("ok  ") for line in out.splitlines()[:-1])
    assert out.splitlines()[-1] == f"verified; machine: software; VMPL 0; launch digest {(b'm' * 48).hex()}"


def test_not_verified(files: _Files) -> None:
    """The same without the word that a software machine will do."""
    status, out, err = files.veil(*_GOOD[:5], *_AT)
    assert (status, err) == (1, "")
    assert "FAIL  root " in out
    verdict, below = out.splitlines()[-2:]
    assert verdict.startswith("NOT VERIFIED; machine: unknown; ")
    assert below == "explained in docs/attestation.md#check-root, docs/attestation.md#check-processor"


def test_reports_in_every_form(files: _Files) -> None:
    text = MODEL.report().hex()
    files.write("hex", "\n".join(text[at : at + 64] for at in range(0, len(text), 64)).encode() + b"\n")
    assert files.veil("hex", *_GOOD[1:])[0] == 0
    assert files.veil("-", *_GOOD[1:], stdin=MODEL.report())[0] == 0
    assert files.veil("-", *_GOOD[1:], stdin=text.upper().encode())[0] == 0


def test_reports_as_other_tools_write_them(files: _Files) -> None:
    report = MODEL.report()
    table = pack_certificates({VCEK: _der(MODEL.leaf), ASK: _der(MODEL.intermediate), ARK: _der(MODEL.root)})
    files.write("report", b"0x" + report.hex().encode())
    assert files.veil(*_GOOD)[0] == 0
    files.write("report", base64.encodebytes(report))
    assert files.veil(*_GOOD)[0] == 0
    files.write("report", report + table)
    assert files.veil("report", "--software-root", "root", *_AT)[0] == 0


def _vtpm_blob(report: bytes, data: bytes) -> bytes:
    size = 20 + len(data)
    header = b"HCLA" + struct.pack("<7I", 2, 32 + len(report) + size, 2, 0, 0, 0, 0)
    return (header + report + struct.pack("<5I", size, 1, 2, 1, len(data)) + data).ljust(2600, b"\0")


def test_blob_of_a_vtpm(files: _Files) -> None:
    """Its runtime data is shown only if the report binds it and is verified."""
    data = b'{"keys":[]}'
    report = MODEL.report(report_data=hashlib.sha256(data).digest().ljust(64, b"\0"))
    files.write("report", _vtpm_blob(report, data))
    status, out, _ = files.veil(*_GOOD)
    assert (status, "REPORT_DATA binds the vTPM's runtime data (11 bytes, SHA256)" in out) == (0, True)
    assert json.loads(files.veil(*_GOOD, "--json")[1])["runtime_data"] == data.decode()
    files.write("report", _vtpm_blob(report, b'{"keys":[1]}'))
    status, out, _ = files.veil(*_GOOD)
    assert (status, "FAIL  runtime data" in out) == (1, True)
    assert out.splitlines()[-1] == "explained in docs/attestation.md#check-runtime-data"
    assert json.loads(files.veil(*_GOOD, "--json")[1])["runtime_data"] is None


def test_certificates_in_one_file_of_any_form(files: _Files) -> None:
    chain = [MODEL.leaf, MODEL.intermediate, MODEL.root]
    files.write("p7b", pkcs7.serialize_certificates(chain, Encoding.DER))
    files.write("ders", b"".join(map(_der, chain)))
    files.write("base64", base64.encodebytes(b"".join(map(_der, chain))))
    for name in ("p7b", "ders", "base64"):
        for option in ("--vcek", "--chain", "--certificates"):
            assert files.veil("report", option, name, "--software-root", "root", *_AT)[0] == 0


def test_notes(files: _Files) -> None:
    """What is verified with something to know about it."""
    files.write("report", MODEL.report(platform_info=1 << 12))
    status, out, _ = files.veil(*_GOOD)
    assert status == 0
    assert "note  reserved fields" in out
    assert out.splitlines()[-1].startswith("verified; ")
    answer = json.loads(files.veil(*_GOOD, "--json")[1])
    [note] = [check for check in answer["checks"] if check["note"]]
    assert (note["ok"], note["explained"]) == (True, "docs/attestation.md#check-reserved-fields")
    files.write("policy", b"allow_unknown_fields = false\n")
    assert files.veil(*_GOOD, "--policy", "policy")[0] == 1


def test_files_without_an_end(files: _Files) -> None:
    for arguments in (("/dev/zero", *_GOOD[1:]), ("report", "--vcek", "/dev/zero")):
        status, out, err = files.veil(*arguments)
        assert (status, out) == (125, "")
        assert err == "veil: /dev/zero has more than 64 MiB, which nothing has that is read here\n"


def test_certificate_table(files: _Files) -> None:
    files.write("table", pack_certificates({VCEK: _der(MODEL.leaf), ASK: _der(MODEL.intermediate)}).ljust(8192, b"\0"))
    assert files.veil("report", "--certificates", "table", "--chain", "root", "--software-root", "root", *_AT)[0] == 0
    files.write("table", pack_certificates({ARK: _der(MODEL.root)}))
    assert files.veil("report", "--certificates", "table", *_AT)[0] == 125


def test_json(files: _Files) -> None:
    for arguments, verified in ((_GOOD, True), ((*_GOOD, "--measurement", "00" * 48), False)):
        status, out, _ = files.veil(*arguments, "--json")
        answer = json.loads(out)
        assert (status, answer["verified"], answer["machine"]) == (not verified, verified, "software")
        assert all(check["ok"] for check in answer["checks"]) == verified
        assert answer["report"]["report_data"] == (b"d" * 64).hex()


def test_demands_by_option_and_file(files: _Files) -> None:
    assert files.veil(*_GOOD, "--report-data", (b"d" * 64).hex(), "--measurement", (b"m" * 48).hex())[0] == 0
    status, out, _ = files.veil(*_GOOD, "--report-data", "00" * 64)
    assert (status, "FAIL  report data" in out) == (1, True)
    files.write("policy", b"max_vmpl = 0\nminimum_guest_svn = 1\n")
    status, out, _ = files.veil(*_GOOD, "--policy", "policy")
    assert (status, "FAIL  guest SVN" in out) == (1, True)


def test_revocation_and_times(files: _Files) -> None:
    files.write("crl", MODEL.crl())
    assert files.veil(*_GOOD, "--crl", "crl")[0] == 0
    files.write("crl", MODEL.crl(MODEL.ask_serial))
    status, out, _ = files.veil(*_GOOD, "--crl", "crl")
    assert (status, "FAIL  revocation" in out) == (1, True)
    status, out, _ = files.veil(*_GOOD[:-2], "--at", "2040-01-01T00:00:00+00:00")
    assert (status, "expired" in out) == (1, True)


def test_a_report_of_the_host_names_no_vmpl(files: _Files) -> None:
    files.write("report", MODEL.report(vmpl=0xFFFFFFFF))
    status, out, _ = files.veil(*_GOOD)
    assert status == 1
    assert "NOT VERIFIED; machine: software; asked for by the host; launch digest" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("report",), "no certificates: give --vcek and --chain"),
        (("none", *_GOOD[1:]), "cannot read none"),
        (("bad", *_GOOD[1:]), "bad: an attestation report has 1184 bytes"),
        (("report", "--vcek", "bad", "--chain", "chain"), "bad: no certificate"),
        (("report", "--vcek", "vcek", "--chain", "bad"), "bad: no certificate"),
        (("report", "--vcek", "vcek", "--chain", "chain", "--software-root", "bad"), "bad: no certificate"),
        (("report", "--certificates", "bad"), "bad: the certificate table has no end, and otherwise: no certificate"),
        (("page", *_GOOD[1:]), "page: an attestation report has 1184 bytes, or text for them: this text is neither"),
        (("report", "--vcek", "page"), "page: no certificate in 22 bytes: a web page"),
        (("report", "--vcek", "vcek", "--chain", "root"), "which issued the leaf, is missing"),
        ((*_GOOD, "--policy", "bad"), "bad is not valid TOML"),
        ((*_GOOD[:-2], "--at", "0001-01-01T00:00+05:00"), "no name in UTC"),
    ],
)
def test_what_cannot_be_tried_is_one_line_and_125(files: _Files, arguments: tuple[str, ...], words: str) -> None:
    status, out, err = files.veil(*arguments)
    assert (status, out, err.count("\n")) == (125, "", 1)
    assert err.startswith("veil: ")
    assert words in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*_GOOD, "--measurement", "12"), "--measurement must be 96"),
        ((*_GOOD, "--report-data", "zz" * 64), "--report-data must be 128"),
        ((*_GOOD[:-2], "--at", "noon"), "--at 'noon' is not a time: write 2026-06-01"),
    ],
)
def test_a_value_that_is_not_one_is_wrong_usage(files: _Files, arguments: tuple[str, ...], words: str) -> None:
    status, out, err = files.veil(*arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_genuine(files: _Files) -> None:
    folder = VECTORS / "milan-v2"
    if not folder.is_dir():
        pytest.skip(f"no genuine AMD reports at {VECTORS}")
    certificates = ("--vcek", str(folder / "vcek.der"), "--chain", str(folder / "ask_ark.pem"))
    status, out, err = files.veil(str(folder / "report.hex"), *certificates, *_AT)
    assert (status, err) == (0, "")
    assert "verified; machine: AMD Milan; VMPL 0" in out


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("good.bin", None), ("good.b64", None), ("good-0x.hex", None), ("hcl-wrapped.bin", "runtime data"),
        ("platform-info-bit-6.bin", None), ("microcode-newer-than-committed.bin", "firmware"),
    ],
)  # fmt: skip
def test_reports_of_other_installations(files: _Files, name: str, note: str | None) -> None:
    """Made by a software machine elsewhere."""
    folder = VECTORS.parent / "cases" / "inputs"
    if not folder.is_dir():
        pytest.skip(f"no reports at {folder}")
    ark, table = folder / "ark.pem", folder / "table.bin"
    at = x509.load_pem_x509_certificate(ark.read_bytes()).not_valid_before_utc + datetime.timedelta(days=2)
    more = ("--certificates", str(table), "--software-root", str(ark), "--at", at.isoformat())
    status, out, err = files.veil(str(folder / name), *more)
    assert (status, err) == (0, "")
    assert [line.split("  ")[1] for line in out.splitlines() if line.startswith("note")] == ([note] if note else [])


def test_help_teaches(files: _Files) -> None:
    status, out, _ = files.veil("--help")
    assert status == 0
    assert all(word in out for word in ("kdsintf.amd.com", "curl", "--certificates auxblob", "Exit status"))
