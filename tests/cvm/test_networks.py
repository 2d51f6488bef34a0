# SPDX-License-Identifier: GPL-2.0-or-later
"""Networks as users name them, and where libslirp comes from."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cvm.configurations import configurations
from veil.cache import Cache
from veil.cli.cvm_options import CvmOptions
from veil.cvm import ConfidentialVM, Configuration, Network, networks
from veil.cvm.attachments import Attachments
from veil.cvm.disks import Disks
from veil.cvm.kept_snapshots import with_network
from veil.cvm.networks import open_network
from veil.errors import VeilError
from veil.guest.errors import GuestImageError
from veil.network import Forward, LibraryMissing, NetworkError, UserNetwork


@pytest.mark.parametrize(
    ("text", "network", "again"),
    [
        ("user", Network(), None),
        ("user,restrict=on,loopback=off", Network(restrict=True, loopback=False), None),
        ("user,restrict=off,loopback=on", Network(), "user"),
        (
            "user,hostfwd=tcp:8080:80",
            Network((Forward("tcp", "127.0.0.1", 8080, 80),)),
            "user,hostfwd=tcp:127.0.0.1:8080:80",
        ),
        (
            "user,hostfwd=tcp:0.0.0.0:2222:22,hostfwd=udp:5353:53",
            Network((Forward("tcp", "0.0.0.0", 2222, 22), Forward("udp", "127.0.0.1", 5353, 53))),
            "user,hostfwd=tcp:0.0.0.0:2222:22,hostfwd=udp:127.0.0.1:5353:53",
        ),
    ],
)
def test_what_users_write(text: str, network: Network, again: str | None) -> None:
    assert Network.parse(text) == network
    assert str(network) == (again or text)
    assert Network.parse(str(network)) == network


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not a network: write user"),
        ("tap", "'tap' is not a network"),
        ("user,", "has no ''"),
        ("user,restrict", "has no 'restrict'"),
        ("user,restrict=yes", "has no 'restrict=yes'"),
        ("user,hostfwd=", "forwards no port"),
        ("user,hostfwd=tcp:80", "forwards no port"),
        ("user,hostfwd=tcp::8080-:80", "forwards no port"),
        ("user,hostfwd=tcp:a:80", "forwards no port"),
        ("user,hostfwd=tcp:1:2:3:4", "forwards no port"),
        ("user,hostfwd=tcp:-1:80", "forwards no port"),
        ("user,hostfwd=tcp:1111111:80", "forwards no port"),
        ("user,hostfwd=tcp:0:80", "a port is a number from 1 to 65535, not 0"),
        ("user,hostfwd=tcp:80:65536", "a port is a number from 1 to 65535, not 65536"),
        ("user,hostfwd=icmp:80:80", "by tcp or udp, not 'icmp'"),
        ("user,hostfwd=tcp:localhost:80:80", "'localhost' is not an IPv4 address"),
        ("user,hostfwd=tcp::80:80", "'' is not an IPv4 address"),
        ("user,restrict=on,hostfwd=udp:80:80", "a restricted guest cannot answer by UDP"),
        ("user,hostfwd=tcp:80:80,hostfwd=tcp:127.0.0.1:80:81", "tcp:127.0.0.1:80 is forwarded twice"),
    ],
)
def test_what_is_not_a_network(text: str, words: str) -> None:
    with pytest.raises(VeilError, match="^" + ".*" + words.replace("'", ".")) as caught:
        Network.parse(text)
    assert "\n" not in str(caught.value)


@settings(max_examples=50)
@given(st.text(max_size=40) | st.text(alphabet="user,hostfwd=tcp:0123456789.", max_size=40))
def test_any_text_is_a_network_or_one_line(text: str) -> None:
    for given_text in (text, f"user,{text}", f"user,hostfwd={text}"):
        try:
            network = Network.parse(given_text)
        except VeilError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017
        else:
            assert Network.parse(str(network)) == network


@settings(max_examples=50)
@given(configurations())
def test_each_is_written_and_read(configuration: Configuration) -> None:
    network = configuration.network
    assert network is None or Network.parse(str(network)) == network


def test_a_configuration_has_one() -> None:
    configuration = Configuration.make(network="user,restrict=on", owners=())
    assert configuration.network == Network(restrict=True)
    assert Configuration.parse(configuration.pack()) == configuration
    assert Configuration.make(owners=()).network is None


def test_commands_have_it() -> None:
    cvm = CvmOptions("512M", 1, None, no_monitor=True, network="user,restrict=on")
    assert cvm.configuration().network == Network(restrict=True)


def test_that_there_is_one_is_measured_and_no_more() -> None:
    def image(network: str | None) -> Any:
        return ConfidentialVM(network=network)._assembly._command_line()

    assert image("user") == image("user,restrict=on,hostfwd=tcp:8080:80")
    assert image("user") != image(None)


def test_a_snapshot_does_not_choose_its_users_network() -> None:
    saved = Configuration.make(network="user,hostfwd=tcp:0.0.0.0:22:22", owners=())
    assert with_network(saved, "user,restrict=on").network == Network(restrict=True)
    assert with_network(saved, Network()).network == Network()
    with pytest.raises(VeilError, match=r"had the network user,hostfwd=tcp:0\.0\.0\.0:22:22: name one"):
        with_network(saved, None)
    with pytest.raises(VeilError, match="had no network, and gets none"):
        with_network(Configuration.make(owners=()), "user")


class _Networks:
    """Stands for `UserNetwork` where only some folders have a library."""

    def __init__(self, *good: Sequence[Path]) -> None:
        self.good = good
        self.unconfined: str | None = None
        self.tried: list[Sequence[Path]] = []

    def __call__(self, forwards: object, *, restrict: bool, loopback: bool, folders: Sequence[Path]) -> UserNetwork:
        self.tried.append(folders)
        if folders not in self.good:
            raise LibraryMissing("libslirp.so.0 cannot be loaded")
        made = object.__new__(UserNetwork)
        made.unconfined = self.unconfined
        return made


def test_the_library_of_this_computer_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _Networks(())
    monkeypatch.setattr(networks, "UserNetwork", made)
    monkeypatch.setattr(networks, "unpacked_library", pytest.fail)
    open_network(Network(), Cache(), lambda words: None)
    assert made.tried == [()]


def test_what_is_not_confined_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _Networks(())
    monkeypatch.setattr(networks, "UserNetwork", made)
    told: list[str] = []
    open_network(Network(), Cache(), told.append)
    assert not told
    made.unconfined = "there is no libseccomp"
    open_network(Network(), Cache(), told.append)
    assert told == [
        "the process of the guest's network is not confined, and has all of your rights: there is no libseccomp"
    ]


def test_else_it_is_debians_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folders = (tmp_path / "lib/x86_64-linux-gnu", tmp_path / "usr/lib/x86_64-linux-gnu")
    made = _Networks(folders)
    monkeypatch.setattr(networks, "UserNetwork", made)
    monkeypatch.setattr(networks, "unpacked_library", lambda cache, package, say: tmp_path)
    open_network(Network(), Cache(), lambda words: None)
    assert made.tried == [(), folders]


def test_without_either_one_line_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Path:
        raise GuestImageError("apt-get is not there")

    monkeypatch.setattr(networks, "UserNetwork", _Networks())
    monkeypatch.setattr(networks, "unpacked_library", refuse)
    with pytest.raises(NetworkError, match=r"cannot be loaded; and as a package of Debian's .*: apt-get is not there"):
        open_network(Network(), Cache(), lambda words: None)


def test_without_its_network_a_guest_keeps_no_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An image that is written to is one guest's alone, and there is none."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    chosen = Configuration.make(disks=[f"{image},write"], network="user", owners=())
    monkeypatch.setattr(networks, "UserNetwork", _Networks())
    monkeypatch.setattr(networks, "unpacked_library", lambda cache, package, say: tmp_path)
    attachments = Attachments(chosen, Cache(), lambda words: None)
    with pytest.raises(LibraryMissing):
        attachments.open()
    with closing(Disks(chosen.disks)):
        pass
