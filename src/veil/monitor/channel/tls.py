# SPDX-License-Identifier: GPL-2.0-or-later
"""The channel's key and TLS: OpenSSL with memory for a network (RFC 8446)."""

from __future__ import annotations

import datetime
import hashlib
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

if TYPE_CHECKING:
    from OpenSSL import SSL

__all__ = ["ChannelKey", "TlsEnd", "TlsFailed"]

_PIECE = 16 << 10


class TlsFailed(Exception):
    """The connection cannot go on."""


class ChannelKey:
    """Made inside the CVM; its public half is what attestation binds. The certificate around it says nothing more."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._context: SSL.Context | None = None

    def public_bytes(self) -> bytes:
        """DER SubjectPublicKeyInfo."""
        return self._key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def accept(self) -> TlsEnd:
        """The server's end of a new connection."""
        from OpenSSL import SSL

        if self._context is None:
            self._context = self._make_context()
        connection = SSL.Connection(self._context, None)
        connection.set_accept_state()
        return TlsEnd(connection)

    def _make_context(self) -> SSL.Context:
        # Here, because most boots see no user, and these take long to import.
        from cryptography import x509
        from cryptography.x509.oid import NameOID
        from OpenSSL import SSL

        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "VeilMon")])
        # A clock that the host sets would say nothing: users check the key, not the time.
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(self._key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
        builder = builder.not_valid_after(datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC))
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        # One group, which every TLS 1.3 has (RFC 8446, 9.1), and a cheap one: a stranger who replays a hello for
        # ffdhe3072 spends nothing, while our part is seven times the work.
        context.set_tmp_ecdh(ec.SECP256R1())
        # Nothing outlives its connection: no tickets, no resumption, no early data (which a host could replay).
        context.set_options(SSL.OP_NO_TICKET)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        # Any certificate will do: what counts is the key that its holder proves to have, see `peer_fingerprint`.
        context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
        # One certificate is enough: checking a chain, by keys of a stranger's choice, takes as long as they like.
        context.set_verify_depth(0)
        # Many connections are silent at any time: they need no buffers.
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        context.use_certificate(builder.sign(self._key, hashes.SHA256()))
        context.use_privatekey(self._key)
        return context


class TlsEnd:
    """Bytes of the network in and out, plain text in and out."""

    def __init__(self, connection: SSL.Connection) -> None:
        self._connection = connection
        self.established = False

    def receive(self, data: bytes) -> bytes:
        """Take in ciphertext; returns the plain text that is complete. Raises TlsFailed."""
        from OpenSSL import SSL

        plain = bytearray()
        try:
            self._connection.bio_write(data)
            if not self.established:
                self._connection.do_handshake()
                self.established = True
            while piece := self._connection.recv(_PIECE):
                plain += piece
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            raise TlsFailed("closed by its user") from None
        except SSL.Error as error:
            raise TlsFailed(f"TLS: {error!r}") from error
        return bytes(plain)

    def send(self, plain: bytes) -> None:
        """Encrypt; `take` has the result. Raises TlsFailed."""
        from OpenSSL import SSL

        view = memoryview(plain)
        try:
            while view:
                view = view[self._connection.send(view) :]
        except SSL.Error as error:
            raise TlsFailed(f"TLS: {error!r}") from error

    def take(self) -> bytes:
        """Ciphertext for the network."""
        from OpenSSL import SSL

        pieces = []
        try:
            while piece := self._connection.bio_read(_PIECE):
                pieces.append(piece)
        except SSL.WantReadError:
            pass
        return b"".join(pieces)

    @property
    def peer_fingerprint(self) -> bytes | None:
        """SHA-256 of the public key that the user proved to have; None for a user without one.

        OpenSSL took the certificate; that `cryptography` reads it as well is not certain, and is up to the user.
        """
        try:
            certificate = self._connection.get_peer_certificate(as_cryptography=True)
            if certificate is None:
                return None
            public = certificate.public_key().public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        except Exception:
            return None
        return hashlib.sha256(public).digest()
