# SPDX-License-Identifier: GPL-2.0-or-later
"""The remote user's end of the secure channel: TLS 1.3 to VeilMon, over any transport of bytes."""

from __future__ import annotations

import socket
import time
import uuid
from types import TracebackType
from typing import Protocol

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from veil.errors import describe
from veil.formats.channel import MAX_MESSAGE, MessageReader, Request, Response, pack_request
from veil.formats.errors import FormatError
from veil.formats.knock import CHALLENGE_BYTES, KNOCK
from veil.formats.printable import printable
from veil.formats.status import Status
from veil.remote.channel.identity import UserKey
from veil.remote.errors import RemoteError

__all__ = ["ChannelClient", "ChannelClosed", "RequestFailed", "SocketTransport", "Transport"]

_PIECE = 16 << 10
#: How long the first try of a handshake may take, in seconds; each further one may take twice as long. A host whose
#: places are taken by strangers drops whom it does not know yet: who comes again at once has a new chance.
_FIRST_TRY_S = 1.0
_PAUSE_S = 0.05


class ChannelClosed(RemoteError):
    """The channel is no more: its other end, or somebody in between, ended or spoilt it."""


class _NoHandshake(ChannelClosed):
    """The other end answered, and not as TLS has it: asking again would not help."""


class RequestFailed(RemoteError):
    """VeilMon or a service refused a request; `status` says how."""

    def __init__(self, status: Status, why: str) -> None:
        self.status = status
        super().__init__(f"the other end refused the request ({status.name.lower().replace('_', ' ')}): '{why}'")


class Transport(Protocol):
    """Bytes to and from VeilMon, carried by people whom nobody trusts."""

    def send(self, data: bytes, /) -> None:
        """Send all of it."""

    def receive(self) -> bytes:
        """Wait for some bytes; empty at the end. Raises ChannelClosed if none come in time."""

    def close(self) -> None:
        """Give the connection up."""


class SocketTransport:
    """A TCP or Unix stream socket. `timeout` in seconds for each send and receive."""

    def __init__(self, connected: socket.socket, *, timeout: float | None = 30.0) -> None:
        connected.settimeout(timeout)
        self._socket = connected

    @classmethod
    def connect(cls, host: str, port: int, *, timeout: float = 30.0) -> SocketTransport:
        """A TCP connection; raises RemoteError."""
        try:
            connected = socket.create_connection((host, port), timeout)
            # Handshakes and requests are small and waited for (Nagle's algorithm holds them back by 40 ms).
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise RemoteError(f"cannot connect to {host}:{port}: {describe(error)}") from error
        return cls(connected, timeout=timeout)

    def wait_for(self, timeout: float | None) -> None:
        """From now on each send and receive takes no more than so many seconds."""
        self._socket.settimeout(timeout)

    def send(self, data: bytes, /) -> None:
        """Send all of it."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ChannelClosed(f"the connection to the CVM broke: {describe(error)}") from error

    def receive(self) -> bytes:
        """Wait for some bytes."""
        try:
            return self._socket.recv(_PIECE)
        except TimeoutError:
            raise ChannelClosed("the CVM, or who carries its channel, did not answer in time") from None
        except OSError as error:
            raise ChannelClosed(f"the connection to the CVM broke: {describe(error)}") from error

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class ChannelClient:
    """Requests and responses. Nothing is known of the other end until its key was found in an attestation report."""

    def __init__(self, transport: Transport, *, identity: UserKey | None = None) -> None:
        """Do the handshake. `identity` proves who we are; a CVM lets its owners do more than look."""
        self._transport = transport
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        # VeilMon's group: with another one's key share the handshake would take a round trip more.
        context.set_tmp_ecdh(ec.SECP256R1())
        # No authority vouches for VeilMon's certificate; attestation vouches for its key (`server_key`).
        context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
        if identity is not None:
            context.use_certificate(identity.certificate)
            context.use_privatekey(identity.private_key)
        self._tls = SSL.Connection(context, None)
        self._tls.set_connect_state()
        self._reader = MessageReader()
        self._next = 1
        self._closed = False
        self._handshake()

    @classmethod
    def connect(cls, host: str, port: int, *, timeout: float = 30.0, identity: UserKey | None = None) -> ChannelClient:
        """Over TCP. Tries again, within `timeout` seconds, while the handshake is dropped or not answered.

        With an `identity` it begins with a knock, so that the host need not have users wait whom the launch names.
        `timeout` is also that of each later send and receive. Raises RemoteError.
        """
        end = time.monotonic() + timeout
        patience = _FIRST_TRY_S
        while True:
            left = end - time.monotonic()
            transport = SocketTransport.connect(host, port, timeout=max(_PAUSE_S, left))
            try:
                if identity is not None:
                    # Hosts answer knocks in the order in which users came: who gives up and comes again is the last.
                    transport.wait_for(max(_PAUSE_S, left))
                    _knock(transport, identity)
                transport.wait_for(max(_PAUSE_S, min(patience, end - time.monotonic())))
                client = cls(transport, identity=identity)
            except _NoHandshake:
                raise
            except ChannelClosed:
                transport.close()
                if time.monotonic() + _PAUSE_S >= end:
                    raise
                time.sleep(_PAUSE_S)
                patience *= 2
                continue
            transport.wait_for(timeout)
            return client

    def __enter__(self) -> ChannelClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def server_key(self) -> bytes:
        """DER SubjectPublicKeyInfo of the key that the other end proved to have. Raises ChannelClosed."""
        try:
            certificate = self._tls.get_peer_certificate(as_cryptography=True)
            assert certificate is not None  # TLS 1.3 has no handshake without one here
            return certificate.public_key().public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        except Exception as error:
            self.close()
            raise ChannelClosed(f"the other end has a key of an unknown kind ({error})") from error

    def request(self, service: uuid.UUID, call: int, body: bytes = b"") -> bytes:
        """Ask, and wait for the answer. Raises RequestFailed if it is a refusal, ChannelClosed if there is none."""
        number = self.send(service, call, body)
        response = self.receive()
        if response.number != number:
            raise ChannelClosed(f"an answer to request {response.number} where {number} was due")
        if response.status != Status.OK:
            raise RequestFailed(response.status, printable(response.body))
        return response.body

    def send(self, service: uuid.UUID, call: int, body: bytes = b"") -> int:
        """Ask without waiting; returns the number that the answer will have."""
        if len(body) > MAX_MESSAGE:
            raise RemoteError(f"a request of {len(body)} bytes is too long: at most {MAX_MESSAGE}")
        number = self._next
        self._next = self._next % 0xFFFFFFFF + 1
        view = memoryview(pack_request(Request(number, service, call, body)))
        while view:
            try:
                view = view[self._tls.send(view[:_PIECE]) :]
            except SSL.Error as error:
                raise self._spoilt(error) from error
            self._flush()
        return number

    def receive(self) -> Response:
        """The next answer."""
        while True:
            try:
                response = self._reader.response()
            except FormatError as error:
                self.close()
                raise ChannelClosed(f"the channel's other end does not keep to the protocol: {error}") from error
            if response is not None:
                return response
            self._reader.feed(self._plain())

    def close(self) -> None:
        """End the channel; VeilMon is told if that is possible."""
        if self._closed:
            return
        self._closed = True
        try:
            self._tls.shutdown()
            self._flush()
        except (SSL.Error, RemoteError):
            pass
        self._transport.close()

    def _handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
                self._flush()
                return
            except SSL.WantReadError:
                self._flush()
                self._fill()
            except SSL.Error as error:
                self._transport.close()
                raise _NoHandshake(f"no secure channel: the TLS handshake failed ({_describe(error)})") from error

    def _plain(self) -> bytes:
        while True:
            try:
                return self._tls.recv(_PIECE)
            except SSL.WantReadError:
                self._flush()
                self._fill()
            except SSL.ZeroReturnError:
                raise ChannelClosed("the CVM closed the channel") from None
            except SSL.Error as error:
                raise self._spoilt(error) from error

    def _spoilt(self, error: SSL.Error) -> ChannelClosed:
        self._closed = True
        self._transport.close()
        return ChannelClosed(f"the channel was spoilt on its way ({_describe(error)})")

    def _fill(self) -> None:
        data = self._transport.receive()
        if not data:
            raise ChannelClosed("the channel was closed")
        self._tls.bio_write(data)

    def _flush(self) -> None:
        try:
            while data := self._tls.bio_read(_PIECE):
                self._transport.send(data)
        except SSL.WantReadError:
            return


def _knock(transport: Transport, identity: UserKey) -> None:
    """Show the host that the launch names us, if it does."""
    transport.send(KNOCK)
    challenge = b""
    while len(challenge) < CHALLENGE_BYTES and KNOCK.startswith(challenge[: len(KNOCK)]):
        data = transport.receive()
        if not data:
            raise ChannelClosed("the channel was closed")
        challenge += data
    try:
        proof = identity.answer(challenge)
    except FormatError as error:
        transport.close()
        raise _NoHandshake(f"no secure channel: no CVM's host is at this address ({error})") from error
    transport.send(proof)


def _describe(error: SSL.Error) -> str:
    reasons = [str(item[2]) for item in error.args[0]] if error.args and isinstance(error.args[0], list) else []
    return printable(", ".join(reasons) or repr(error))
