# SPDX-License-Identifier: GPL-2.0-or-later
"""veil enclave attest and provision, against a VeilS-ENC on the bench; and which secrets `veil run` takes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.guest.enclaves.test_hostile_files import build, elf, segment
from tests.monitor.wire import Wire
from tests.services.enc.enclave_bench import CONTENT as CODE
from tests.services.enc.enclave_bench import LAYOUT as CODE_ALONE
from tests.services.enc.enclave_bench import EnclaveBench
from tests.services.log.harness import OWNER, READER
from tests.snp.chip import chip
from veil.cli import main
from veil.cli.enc.arguments import check_arguments
from veil.cli.enc.secrets import secrets_for
from veil.errors import VeilError
from veil.formats.enclave_reports import LONGEST_SECRET, EnclaveStatement
from veil.formats.enclaves import Prot, Record
from veil.guest.enclaves.config import CONFIG_PLACE, Config
from veil.guest.enclaves.image import EnclaveImage
from veil.guest.enclaves.manifest import Manifest
from veil.guest.enclaves.rules import Rules
from veil.remote import ChannelClient, Policy, Trust, TrustedRoots
from veil.remote.channel.identity import UserKey

Veil = Callable[..., tuple[int, str, str]]
MANIFEST = Manifest(secrets=("key", "other"), threads=2, memory=1 << 20)
CONFIG = Config(
    entry=0, program_entry=0, headers=0, header_count=0, interpreter=0, brk_start=0, brk_end=MANIFEST.memory,
    heap_bytes=0, program="/x", rules=Rules.of(MANIFEST), manifest=MANIFEST.text(),
).pack()  # fmt: skip
LAYOUT = replace(
    CODE_ALONE, pool_pages=256, records=(*CODE_ALONE.records, Record.content(Prot.R, CONFIG_PLACE, CONFIG))
)
CONTENT = CODE + CONFIG
IMAGE = EnclaveImage(LAYOUT, CONTENT, MANIFEST.text())
OTHER = replace(LAYOUT, pool_pages=9)
ANOTHER = "runtime: ANOTHER than this Veil builds here; whether it keeps the manifest's rules only its builder knows"


@pytest.fixture
def bench() -> EnclaveBench:
    bench = EnclaveBench(owners=[OWNER.fingerprint], readers=[READER.fingerprint])
    bench.certificates = chip().certificate_table
    bench.boot()
    return bench


@pytest.fixture
def veil(
    bench: EnclaveBench, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Veil:
    """A command, by the bench's owner if it is not said otherwise, who believes its machine."""

    def run(*arguments: str, user: UserKey = OWNER, policy: Policy | None = None) -> tuple[int, str, str]:
        roots = TrustedRoots.amd().with_software_root(chip().ark.public_bytes(Encoding.PEM))
        trust = Trust(policy or Policy(), roots=roots)
        monkeypatch.setattr("veil.cli.trust_options.TrustOptions.of_a_cvm_elsewhere", lambda _: trust)
        monkeypatch.setattr("veil.installation.user_key", lambda: user)
        monkeypatch.setattr("veil.installation.owner_fingerprint", lambda: user.fingerprint)
        monkeypatch.setattr(
            ChannelClient, "connect", lambda *_, identity: ChannelClient(Wire(bench), identity=identity)
        )
        monkeypatch.setattr("sys.argv", ["veil", "enclave", *arguments, "--connect", "127.0.0.1:1"])
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0), *capfd.readouterr()

    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.enclave").write_bytes(IMAGE.pack())
    (tmp_path / "key.bin").write_bytes(b"\0binary\n")
    return run


def kept(bench: EnclaveBench, name: bytes = b"key") -> bytes | None:
    return bench.service._keys.secret(LAYOUT.measurement, name)


def test_all_that_run(bench: EnclaveBench, veil: Veil) -> None:
    assert veil("attest") == (0, "no enclave runs\n", "")
    bench.make(LAYOUT, CONTENT)
    bench.create(LAYOUT)
    status, out, err = veil("attest", user=READER)
    assert (status, err) == (0, "")
    size = len(bench.enclave(1).owned) * 4
    assert out == f"enclave 1: {LAYOUT.measurement.hex()}, 2 threads at most, {size}K\n"


@pytest.mark.parametrize("name", ["x.enclave", LAYOUT.measurement.hex(), LAYOUT.measurement.hex().upper()])
def test_those_of_one_measurement(bench: EnclaveBench, veil: Veil, name: str) -> None:
    bench.make(OTHER, CONTENT)
    assert veil("attest", name) == (1, f"no enclave of measurement {LAYOUT.measurement.hex()} runs\n", "")
    bench.make(LAYOUT, CONTENT)
    bench.make(LAYOUT, CONTENT)
    status, out, _ = veil("attest", name)
    assert status == 0
    assert [line.split(",")[0] for line in out.splitlines()] == [
        f"enclave {number}: {LAYOUT.measurement.hex()}" for number in (2, 3)
    ]
    found = json.loads(veil("attest", name, "--json")[1])["enclaves"]
    assert [(item["number"], item["measurement"], item["slots"]) for item in found] == [
        (2, LAYOUT.measurement.hex(), 2), (3, LAYOUT.measurement.hex(), 2),
    ]  # fmt: skip


def test_a_statement_of_somebody_else(bench: EnclaveBench, veil: Veil, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.make(LAYOUT, CONTENT)
    honest = EnclaveStatement.parse
    monkeypatch.setattr(EnclaveStatement, "parse", lambda packed: honest(packed)._replace(measurement=b"x" * 48))
    status, out, err = veil("attest")
    assert (status, out) == (125, "")
    assert "not signed by the key that the report binds" in err


def test_a_cvm_that_is_another_one(bench: EnclaveBench, veil: Veil) -> None:
    """Nothing is asked, and nothing is sent."""
    bench.make(LAYOUT, CONTENT)
    another = Policy(measurement=(b"m" * 48,))
    for command in (("attest",), ("provision", "x.enclave", "key", "key.bin")):
        status, out, err = veil(*command, policy=another)
        assert (status, out) == (1, "")
        assert err.startswith("veil: NOT VERIFIED: ")
    assert kept(bench) is None


def test_a_secret_is_sent_and_removed(bench: EnclaveBench, veil: Veil, tmp_path: Path) -> None:
    words = f"key: 8 bytes for enclaves of {LAYOUT.measurement.hex()}\n"
    assert veil("provision", "x.enclave", "key", "key.bin") == (0, words, f"veil: x.enclave: {ANOTHER}\n")
    assert kept(bench) == b"\0binary\n"
    (tmp_path / "key.bin").write_bytes(b"")
    words = f"key: removed, of enclaves of {LAYOUT.measurement.hex()}\n"
    assert veil("provision", "x.enclave", "key", "key.bin") == (0, words, "")
    assert kept(bench) is None


def test_of_an_image_with_our_runtime_nothing_is_said(bench: EnclaveBench, veil: Veil, tmp_path: Path) -> None:
    """With another one the manifest is a promise of whoever built it: see above."""
    image = build(elf(), Manifest(secrets=("key",)))
    (tmp_path / "ours.enclave").write_bytes(image.pack())
    words = f"key: 8 bytes for enclaves of {image.measurement.hex()}\n"
    assert veil("provision", "ours.enclave", "key", "key.bin") == (0, words, "")


def test_a_secret_from_stdin_for_a_measurement(
    bench: EnclaveBench, veil: Veil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the image nobody knows which names it asks for."""
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"from a pipe"), closed=False))
    assert veil("provision", LAYOUT.measurement.hex(), "another")[0] == 0
    assert kept(bench, b"another") == b"from a pipe"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("x.enclave", "kye", "key.bin"), "does not ask for a secret 'kye', only for key, other"),
        (("x.enclave", "key", "missing"), "cannot read missing"),
        (("y.enclave", "key", "key.bin"), "y.enclave: cannot read the enclave's image"),
        (("key.bin", "key", "key.bin"), "key.bin: not an enclave's image"),
        (("x.enclave", "key", "long"), f"a secret has {LONGEST_SECRET} bytes at most"),
    ],
)
def test_what_cannot_be_sent(
    bench: EnclaveBench, veil: Veil, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "long").write_bytes(bytes(LONGEST_SECRET + 1))
    status, out, err = veil("provision", *arguments)
    assert (status, out, err.count("\n")) == (125, "", 1)
    assert words in err
    assert kept(bench) is None


def test_who_may(bench: EnclaveBench, veil: Veil) -> None:
    """A reader does not send; a stranger does not even ask. Both learn how the CVM is launched for them."""
    status, _, err = veil("provision", "x.enclave", "key", "key.bin", user=READER)
    assert status == 125
    assert f"veil serve --owner {READER.fingerprint.hex()}" in err
    assert kept(bench) is None
    stranger = UserKey.generate()
    status, _, err = veil("attest", user=stranger)
    assert status == 125
    assert f"veil serve --reader {stranger.fingerprint.hex()}" in err


# veil run --secret


def test_secrets_of_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key").write_bytes(b"key")
    (tmp_path / "empty").write_bytes(b"")
    assert secrets_for(IMAGE, "x.enclave", [f"key={tmp_path}/key"]) == {"key": b"key"}
    assert "x.enclave waits when it wants a secret that was not sent: other" in capfd.readouterr().err
    assert secrets_for(IMAGE, "x.enclave", [f"{name}={tmp_path}/key" for name in ("key", "other")])
    assert capfd.readouterr().err == f"veil: x.enclave: {ANOTHER}\n"
    for given, words in {
        "key": "write NAME=FILE", "key=": "write NAME=FILE", f"kye={tmp_path}/key": "does not ask",
        f"key={tmp_path}/empty": "is empty", "key=-": "cannot read ./-",
    }.items():  # fmt: skip
        with pytest.raises(VeilError, match=words):
            secrets_for(IMAGE, "x.enclave", [given])
    with pytest.raises(VeilError, match="for none"):
        secrets_for(replace(IMAGE, manifest=""), "x.enclave", [f"key={tmp_path}/key"])


def test_arguments_of_a_run(capfd: pytest.CaptureFixture[str]) -> None:
    check_arguments(IMAGE, "x.enclave", ())
    assert capfd.readouterr().err == ""
    check_arguments(IMAGE, "x.enclave", ("--help",))
    assert "x.enclave takes no arguments from outside" in capfd.readouterr().err
    taker = replace(IMAGE, manifest=replace(MANIFEST, arguments_outside=True).text())
    check_arguments(taker, "x.enclave", ("x",) * 2047)
    for arguments, words in {
        ("x",) * 2048: "2049 arguments, and 2048",
        ("x" * (1 << 17),): "131073 bytes, and 128K",
    }.items():
        with pytest.raises(VeilError, match=f"x.enclave: Argument list too long: {words} at most fit"):
            check_arguments(taker, "x.enclave", arguments)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--secret", "key=key", "--", "true"), "--secret is for an enclave"),
        (("--enclave", "x.enclave", "--secret", "key"), "write NAME=FILE"),
    ],
)
def test_wrong_usage(veil_run: Callable[..., tuple[int, str]], arguments: tuple[str, ...], words: str) -> None:
    status, err = veil_run(*arguments)
    assert status == 2
    assert words in err


def test_what_cannot_be_built_or_read(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One line each, and the status of wrong input."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zeros").write_bytes(elf(segment(address=1 << 40, memsz=1 << 40)))
    (tmp_path / "deep.toml").write_text("a = " + "[" * 5000)
    (tmp_path / "latin.toml").write_bytes(b"directory = '/\xff'")
    (tmp_path / "empty.enclave").write_bytes(b"")
    for arguments, words in {
        ("build", "zeros"): "its segments take 1024.0 GiB",
        ("build", "/dev/zero"): "no ordinary file",
        ("build", "zeros", "--manifest", "deep.toml"): "deep.toml: arrays or tables in each other",
        ("build", "zeros", "--manifest", "latin.toml"): "latin.toml: it is not UTF-8",
        ("build", "zeros", "--set", "threads=1\nmemory=2"): "--set threads: more than one value",
        ("build", "zeros", "--set", f"threads={'[' * 5000}"): "--set threads: write KEY=VALUE",
        ("build", "zeros", "--set", 'directory="/tmp/"'): "no '/' at its end",
        ("inspect", "empty.enclave"): "not an enclave's image: it is empty",
        ("inspect", "/dev/zero"): "no ordinary file",
        ("inspect", "."): ".: cannot read the enclave's image: Is a directory",
    }.items():  # fmt: skip
        monkeypatch.setattr("sys.argv", ["veil", "enclave", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capfd.readouterr()
        assert (caught.value.code, out, err.count("\n")) == (125, "", 1), err
        assert words in err


@pytest.fixture
def veil_run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str]]:
    """`veil run`, which ends before anything starts: status and stderr."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["veil", "run", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0), capfd.readouterr().err

    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.enclave").write_bytes(IMAGE.pack())
    return run
