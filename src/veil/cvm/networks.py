# SPDX-License-Identifier: GPL-2.0-or-later
"""A CVM's network as users name it, and what the host gets for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from veil.cache import Cache
from veil.errors import VeilError
from veil.guest.apt import LIBRARY_FOLDERS
from veil.guest.errors import GuestImageError
from veil.guest.packages import unpacked_library
from veil.network import Forward, LibraryMissing, NetworkError, UserNetwork

__all__ = ["Network", "open_network"]

_KIND = "user"
_FORWARD, _RESTRICT, _LOOPBACK = "hostfwd", "restrict", "loopback"
_SWITCH = {"on": True, "off": False}
_FORM = "write user[,hostfwd=tcp:[ADDRESS:]PORT:GUESTPORT]...[,restrict=on][,loopback=off]"
_PACKAGE = "libslirp0"


@dataclass(frozen=True)
class Network:
    """A network in user mode. Raises VeilError for what cannot be one."""

    forwards: tuple[Forward, ...] = ()
    restrict: bool = False
    """The guest reaches nobody; whoever comes to a forwarded port reaches the guest."""
    loopback: bool = True
    """Of what this computer's user reaches, the guest reaches this computer's 127.0.0.1 as well."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "forwards", tuple(self.forwards))
        if self.restrict and any(forward.protocol == "udp" for forward in self.forwards):
            raise VeilError("a restricted guest cannot answer by UDP: leave out restrict=on, or forward TCP ports only")
        places = [(forward.protocol, forward.address, forward.port) for forward in self.forwards]
        for place in places:
            if places.count(place) > 1:
                raise VeilError(f"{place[0]}:{place[1]}:{place[2]} is forwarded twice")

    @classmethod
    def parse(cls, text: str) -> Network:
        """user[,hostfwd=tcp:[ADDRESS:]PORT:GUESTPORT]...[,restrict=on][,loopback=off]; raises VeilError."""
        kind, *options = text.split(",")
        if kind != _KIND:
            raise VeilError(f"{text!r:.100} is not a network: {_FORM}")
        forwards: list[Forward] = []
        switches = {_RESTRICT: False, _LOOPBACK: True}
        for option in options:
            name, _, value = option.partition("=")
            if name == _FORWARD:
                forwards.append(_forward(value))
            elif name in switches and value in _SWITCH:
                switches[name] = _SWITCH[value]
            else:
                raise VeilError(f"a network has no {option!r:.100}: {_FORM}")
        return cls(tuple(forwards), restrict=switches[_RESTRICT], loopback=switches[_LOOPBACK])

    def __str__(self) -> str:
        words = [_KIND, *(f"{_FORWARD}={forward}" for forward in self.forwards)]
        if self.restrict:
            words.append(f"{_RESTRICT}=on")
        if not self.loopback:
            words.append(f"{_LOOPBACK}=off")
        return ",".join(words)


def _forward(text: str) -> Forward:
    """PROTOCOL:[ADDRESS:]PORT:GUESTPORT; without an address nobody comes from another computer."""
    protocol, *address, port, guest_port = text.split(":") if text.count(":") in (2, 3) else ("", "", "", "")
    if not (port.isdecimal() and guest_port.isdecimal()) or max(len(port), len(guest_port)) > 5:
        raise VeilError(f"{text!r:.100} forwards no port: {_FORM}")
    return Forward(protocol, address[0] if address else "127.0.0.1", int(port), int(guest_port))


def open_network(network: Network, cache: Cache, say: Callable[[str], None]) -> UserNetwork:
    """What the host gets; libslirp is this computer's, or Debian's package in the cache. Raises VeilError."""

    def make(folders: tuple[Path, ...]) -> UserNetwork:
        made = UserNetwork(network.forwards, restrict=network.restrict, loopback=network.loopback, folders=folders)
        if made.unconfined is not None:
            say(f"the process of the guest's network is not confined, and has all of your rights: {made.unconfined}")
        return made

    try:
        return make(())
    except LibraryMissing as missing:
        try:
            place = unpacked_library(cache, _PACKAGE, say)
        except GuestImageError as error:
            raise NetworkError(f"{missing}; and as a package of Debian's it cannot be had: {error}") from error
        return make(tuple(place / name for name in LIBRARY_FOLDERS))
