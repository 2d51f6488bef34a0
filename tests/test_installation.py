# SPDX-License-Identifier: GPL-2.0-or-later
"""What belongs to an installation: where it is, made once, closed to others."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.snp.chip import chip
from veil import installation
from veil.errors import VeilError
from veil.snp.endorsement import Endorsement


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "veil"


def test_where_it_is(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert installation.data_directory() == data
    assert not data.exists()
    monkeypatch.setenv("HOME", str(tmp_path))
    # A relative path is to be ignored, says the specification.
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_DATA_HOME", value)
        assert installation.data_directory() == tmp_path / ".local/share/veil"


def test_no_place_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(VeilError, match="neither XDG_DATA_HOME nor a home directory is set"):
        installation.data_directory()


def test_a_place_that_cannot_be(data: Path) -> None:
    data.parent.write_text("a file")
    with pytest.raises(VeilError, match=r"cannot keep keys in .*\(set XDG_DATA_HOME\)"):
        installation.user_key()


def test_the_user_has_one_key(data: Path) -> None:
    key = installation.user_key()
    assert installation.user_key().fingerprint == key.fingerprint
    assert installation.owner_fingerprint() == key.fingerprint
    assert len(key.fingerprint) == hashlib.sha256().digest_size
    assert data.stat().st_mode & 0o777 == 0o700
    assert (data / "user.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kept", ["", "zz", "ab" * 31, "ab" * 33])
def test_a_kept_fingerprint_that_is_damaged_is_made_again(data: Path, kept: str) -> None:
    fingerprint = installation.owner_fingerprint()
    (data / "user.fingerprint").write_text(kept)
    assert installation.owner_fingerprint() == fingerprint
    assert (data / "user.fingerprint").read_text() == fingerprint.hex() + "\n"


def test_a_fingerprint_without_its_key_is_not_believed(data: Path) -> None:
    """A CVM whose owner nobody can be would come of it."""
    before = installation.owner_fingerprint()
    (data / "user.key").unlink()
    after = installation.owner_fingerprint()
    assert after == installation.user_key().fingerprint != before


def test_the_chip_is_made_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = chip()  # its keys take seconds
    monkeypatch.setattr(Endorsement, "generate", lambda tcb: made)
    assert installation.known_software_root() is None
    root = installation.software_root()
    assert installation.software_root() == root
    place = installation.known_software_root()
    assert place is not None
    assert place.is_relative_to(data)


def test_a_chip_that_cannot_be_read(data: Path) -> None:
    (data / "machine").mkdir(parents=True)
    with pytest.raises(VeilError) as caught:
        installation.endorsement()
    assert "\n" not in str(caught.value)
