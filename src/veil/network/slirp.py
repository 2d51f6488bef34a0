# SPDX-License-Identifier: GPL-2.0-or-later
"""libslirp by ctypes (libslirp.h): as much of it as a guest with one IPv4 address needs."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from veil.formats.user_network import GATEWAY, GUEST, NAME_SERVER, NETWORK, PREFIX_LENGTH

__all__ = ["LIBRARY", "Slirp", "load_library"]

LIBRARY = "libslirp.so.0"
#: of SlirpConfig: what follows its fields below came later, and is not asked for
_VERSION = 1
_HOST_NAME = b"veil"
#: SLIRP_POLL_IN and so on
_EVENTS = {1: select.POLLIN, 2: select.POLLOUT, 4: select.POLLPRI, 8: select.POLLERR, 16: select.POLLHUP}

_OPAQUE = ctypes.c_void_p
_SEND = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_size_t, _OPAQUE)
_GUEST_ERROR = ctypes.CFUNCTYPE(None, ctypes.c_char_p, _OPAQUE)
_CLOCK = ctypes.CFUNCTYPE(ctypes.c_int64, _OPAQUE)
_TIMER_NEW = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, _OPAQUE)
_TIMER_FREE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, _OPAQUE)
_TIMER_MOD = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, _OPAQUE)
_POLL_FD = ctypes.CFUNCTYPE(None, ctypes.c_int, _OPAQUE)
_NOTIFY = ctypes.CFUNCTYPE(None, _OPAQUE)
_ADD_POLL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int, _OPAQUE)
_GET_REVENTS = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, _OPAQUE)


class _InAddr(ctypes.Structure):
    _fields_ = [("s_addr", ctypes.c_uint32)]


class _Config(ctypes.Structure):
    """SlirpConfig, version 1."""

    _fields_ = [
        ("version", ctypes.c_uint32),
        ("restricted", ctypes.c_int),
        ("in_enabled", ctypes.c_bool),
        ("vnetwork", _InAddr),
        ("vnetmask", _InAddr),
        ("vhost", _InAddr),
        ("in6_enabled", ctypes.c_bool),
        ("vprefix_addr6", ctypes.c_uint8 * 16),
        ("vprefix_len", ctypes.c_uint8),
        ("vhost6", ctypes.c_uint8 * 16),
        ("vhostname", ctypes.c_char_p),
        ("tftp_server_name", ctypes.c_char_p),
        ("tftp_path", ctypes.c_char_p),
        ("bootfile", ctypes.c_char_p),
        ("vdhcp_start", _InAddr),
        ("vnameserver", _InAddr),
        ("vnameserver6", ctypes.c_uint8 * 16),
        ("vdnssearch", ctypes.c_void_p),
        ("vdomainname", ctypes.c_char_p),
        ("if_mtu", ctypes.c_size_t),
        ("if_mru", ctypes.c_size_t),
        ("disable_host_loopback", ctypes.c_bool),
        ("enable_emu", ctypes.c_bool),
    ]


class _Callbacks(ctypes.Structure):
    """SlirpCb, as far as version 1 of SlirpConfig has it looked at."""

    _fields_ = [
        ("send_packet", _SEND),
        ("guest_error", _GUEST_ERROR),
        ("clock_get_ns", _CLOCK),
        ("timer_new", _TIMER_NEW),
        ("timer_free", _TIMER_FREE),
        ("timer_mod", _TIMER_MOD),
        ("register_poll_fd", _POLL_FD),
        ("unregister_poll_fd", _POLL_FD),
        ("notify", _NOTIFY),
    ]


def load_library(folders: Sequence[str] = ()) -> ctypes.CDLL:
    """This computer's libslirp; or, with `folders`, the one that is there, and of the libraries that it needs those
    that this computer does not have. Raises OSError."""
    tried: set[str] = set()
    own = _find(LIBRARY, folders)
    return _open(str(own) if own is not None else LIBRARY, folders, tried)


def _open(name: str, folders: Sequence[str], tried: set[str]) -> ctypes.CDLL:
    while True:
        try:
            return ctypes.CDLL(name, ctypes.RTLD_GLOBAL, use_errno=True)
        except OSError as error:
            # The words begin with the name of what was not found; opened by its path, it is there by its name.
            missing = str(error).partition(":")[0]
            place = _find(missing, folders)
            if place is None or missing in tried:
                raise
            tried.add(missing)
            _open(str(place), folders, tried)


def _find(name: str, folders: Sequence[str]) -> Path | None:
    places = [] if "/" in name else [Path(folder) / name for folder in folders]
    return next(filter(Path.is_file, places), None)


class Slirp:
    """One network. `send(frame)` gets what is for the guest. For one thread."""

    def __init__(
        self, library: ctypes.CDLL, send: Callable[[bytes], None], *, restrict: bool = False, loopback: bool = True
    ) -> None:
        """`restrict`: the guest reaches nobody. `loopback`: if it reaches anybody, then this computer's 127.0.0.1 as
        well."""
        self._library = library
        self._send = send
        self._polled: list[int] = []
        self._happened: dict[int, int] = {}
        self._declare()
        mask = 0xFFFFFFFF << 32 - PREFIX_LENGTH & 0xFFFFFFFF
        config = _Config(
            version=_VERSION,
            restricted=restrict,
            in_enabled=True,
            vnetwork=_address(NETWORK),
            vnetmask=_InAddr(socket.htonl(mask)),
            vhost=_address(GATEWAY),
            vhostname=_HOST_NAME,
            vdhcp_start=_address(GUEST),
            vnameserver=_address(NAME_SERVER),
            disable_host_loopback=not loopback,
        )
        # ctypes does not keep what C does.
        self._callbacks = _Callbacks(
            _SEND(self._send_packet),
            _GUEST_ERROR(lambda message, opaque: None),
            _CLOCK(lambda opaque: time.monotonic_ns()),
            # Timers are for announcing routers, which IPv6 has; it is off.
            _TIMER_NEW(lambda callback, argument, opaque: 1),
            _TIMER_FREE(lambda timer, opaque: None),
            _TIMER_MOD(lambda timer, when, opaque: None),
            _POLL_FD(lambda descriptor, opaque: None),
            _POLL_FD(lambda descriptor, opaque: None),
            _NOTIFY(lambda opaque: None),
        )
        self._add_poll = _ADD_POLL(self._adds_poll)
        self._get_revents = _GET_REVENTS(self._gets_revents)
        self._slirp = library.slirp_new(ctypes.byref(config), ctypes.byref(self._callbacks), None)
        if not self._slirp:
            raise OSError("libslirp makes no network")

    def _declare(self) -> None:
        library = self._library
        library.slirp_new.restype = ctypes.c_void_p
        library.slirp_new.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        library.slirp_input.restype = None
        library.slirp_input.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
        library.slirp_pollfds_fill.restype = None
        library.slirp_pollfds_fill.argtypes = [
            ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32), _ADD_POLL, ctypes.c_void_p,
        ]  # fmt: skip
        library.slirp_pollfds_poll.restype = None
        library.slirp_pollfds_poll.argtypes = [ctypes.c_void_p, ctypes.c_int, _GET_REVENTS, ctypes.c_void_p]
        library.slirp_add_hostfwd.restype = ctypes.c_int
        library.slirp_add_hostfwd.argtypes = [
            ctypes.c_void_p, ctypes.c_int, _InAddr, ctypes.c_int, _InAddr, ctypes.c_int,
        ]  # fmt: skip

    def _send_packet(self, data: int, length: int, opaque: object) -> int:
        self._send(ctypes.string_at(data, length))
        return length

    def input(self, frame: bytes) -> None:
        """A frame of the guest's."""
        self._library.slirp_input(self._slirp, frame, len(frame))

    def forward(self, protocol: str, address: str, port: int, guest_port: int) -> None:
        """Carry those who come to a "tcp" or "udp" port of this computer to one of the guest's. Raises OSError."""
        ctypes.set_errno(0)
        done = self._library.slirp_add_hostfwd(
            self._slirp, protocol == "udp", _address(address), port, _address(GUEST), guest_port
        )
        if done < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number) if number else "libslirp does not listen there")

    def watch(self, poller: select.poll) -> int | None:
        """Register what the network waits for; how many milliseconds it can wait at most, None for any time."""
        self._polled.clear()
        timeout = ctypes.c_uint32(0xFFFFFFFF)
        self._poller = poller
        self._library.slirp_pollfds_fill(self._slirp, ctypes.byref(timeout), self._add_poll, None)
        return None if timeout.value == 0xFFFFFFFF else timeout.value

    def happened(self, events: Sequence[tuple[int, int]]) -> None:
        """What poll() said of the descriptors."""
        self._happened = dict(events)
        self._library.slirp_pollfds_poll(self._slirp, 0, self._get_revents, None)

    def _adds_poll(self, descriptor: int, events: int, opaque: object) -> int:
        self._polled.append(descriptor)
        self._poller.register(descriptor, sum(there for ours, there in _EVENTS.items() if events & ours))
        return len(self._polled) - 1

    def _gets_revents(self, index: int, opaque: object) -> int:
        happened = self._happened.get(self._polled[index], 0) if 0 <= index < len(self._polled) else 0
        return sum(ours for ours, there in _EVENTS.items() if happened & there)


def _address(text: str) -> _InAddr:
    return _InAddr.from_buffer_copy(socket.inet_aton(text))
