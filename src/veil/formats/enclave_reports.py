# SPDX-License-Identifier: GPL-2.0-or-later
"""What VeilS-ENC says of enclaves to those outside: statements, words in the protected log, its manifest."""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from veil.formats.enclave_pages import MAILBOX_DATA
from veil.formats.enclaves import MEASUREMENT_BYTES
from veil.formats.errors import FormatError
from veil.formats.numbers import u64
from veil.formats.page_sizes import PAGE_SIZE

__all__ = [
    "ATTEST_CALL",
    "LONGEST_SECRET",
    "STATEMENT_DATA",
    "EnclaveManifest",
    "EnclaveStatement",
    "EnclaveStatus",
    "EnclaveUserCall",
    "EnclaveWord",
    "Provision",
    "Speaker",
    "pack_enclaves",
    "parse_enclaves",
]

#: as much as a slot's mailbox holds
LONGEST_SECRET = PAGE_SIZE - MAILBOX_DATA
#: bytes of whoever wants a statement
STATEMENT_DATA = 64
_STATEMENT = struct.Struct("<8sQ48s64s")
#: u64 number of the enclave, 64 bytes: the user's nonce
ATTEST_CALL = struct.Struct("<Q64s")
_PROVISION = struct.Struct("<48sHH")


class EnclaveUserCall(enum.IntEnum):
    """What remote users ask VeilS-ENC."""

    LIST = 0
    """-> `pack_enclaves`. Readers and owners"""
    ATTEST = 1
    """`ATTEST_CALL` -> `EnclaveStatement` of the service. Readers and owners"""
    PROVISION = 2
    """`Provision` -> nothing. Owners"""


class Speaker(enum.Enum):
    """For whom a statement was made: the start of what is signed."""

    ENCLAVE = b"VEILENCS"
    """The enclave asked for its 64 bytes to be said."""
    USER = b"VEILENCA"
    """A user asked about the enclave; the 64 bytes are the user's nonce."""


class EnclaveStatement(NamedTuple):
    """That an enclave of this measurement runs in the CVM.

    The service's manifest, which a report of VMPL 0 binds, has the key that signs it.
    """

    speaker: Speaker
    enclave: int
    measurement: bytes
    data: bytes
    signature: bytes = b""
    """ECDSA over P-256 and SHA-256, DER."""

    @property
    def signed_bytes(self) -> bytes:
        """8 bytes `Speaker`, u64 number of the enclave, 48 bytes measurement, 64 bytes data."""
        return _STATEMENT.pack(self.speaker.value, self.enclave, self.measurement, self.data)

    def pack(self) -> bytes:
        """The signed bytes, then the signature."""
        return self.signed_bytes + self.signature

    @classmethod
    def parse(cls, packed: bytes) -> EnclaveStatement:
        """Raises FormatError. The signature is not looked at: see `verify`."""
        if len(packed) <= _STATEMENT.size:
            raise FormatError(f"an enclave's statement is cut short: {len(packed)} bytes")
        magic, enclave, measurement, data = _STATEMENT.unpack_from(packed)
        try:
            speaker = Speaker(magic)
        except ValueError:
            raise FormatError("this is not an enclave's statement") from None
        return cls(speaker, enclave, measurement, data, packed[_STATEMENT.size :])

    def verify(self, public: bytes) -> bool:
        """Did this key (SubjectPublicKeyInfo, DER) sign it?"""
        try:
            key = load_der_public_key(public)
        except ValueError:
            return False
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        try:
            key.verify(self.signature, self.signed_bytes, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


class Provision(NamedTuple):
    """A secret for enclaves of a measurement; an empty one removes it."""

    measurement: bytes
    name: bytes
    secret: bytes

    def pack(self) -> bytes:
        """48 bytes measurement, u16 length of the name, u16 of the secret, both."""
        return _PROVISION.pack(self.measurement, len(self.name), len(self.secret)) + self.name + self.secret

    @classmethod
    def parse(cls, body: bytes) -> Provision:
        """Raises FormatError."""
        if len(body) < _PROVISION.size:
            raise FormatError(f"a secret's message is cut short: {len(body)} bytes")
        measurement, name, secret = _PROVISION.unpack_from(body)
        if not name or len(body) != _PROVISION.size + name + secret:
            raise FormatError("a secret's message has a name and the secret, and nothing else")
        rest = body[_PROVISION.size :]
        return cls(measurement, rest[:name], rest[name:])


@dataclass(frozen=True)
class EnclaveStatus:
    """An enclave, as users see it. Raises FormatError."""

    number: int
    measurement: str
    """In hex."""
    state: str
    """"making", "ready" or "unusable"."""
    slots: int
    pages: int
    """That it has: content, memory for the program, page tables and the like."""

    def __post_init__(self) -> None:
        for count in (self.number, self.slots, self.pages):
            u64(count)
        if not isinstance(self.state, str) or not _is_measurement(self.measurement):
            raise FormatError("a part of an enclave's status is of another type")


def _is_measurement(text: object) -> bool:
    try:
        return isinstance(text, str) and len(bytes.fromhex(text)) == MEASUREMENT_BYTES
    except ValueError:
        return False


def pack_enclaves(enclaves: Sequence[EnclaveStatus]) -> bytes:
    """JSON."""
    return json.dumps([asdict(item) for item in enclaves]).encode()


def parse_enclaves(data: bytes) -> list[EnclaveStatus]:
    """Raises FormatError."""
    try:
        found = json.loads(data)
        if not isinstance(found, list):
            raise FormatError("a list of enclaves is no list")
        return [EnclaveStatus(**item) for item in found]
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"not a list of enclaves: {error!s:.100}") from error


class EnclaveManifest(NamedTuple):
    """What attestation says of the service."""

    public_key: bytes
    """Of statements: SubjectPublicKeyInfo, DER."""
    mode: str

    def pack(self) -> bytes:
        """JSON."""
        return json.dumps({"mode": self.mode, "public_key": self.public_key.hex()}, sort_keys=True).encode()

    @classmethod
    def parse(cls, data: bytes) -> EnclaveManifest:
        """Raises FormatError."""
        try:
            found = json.loads(data)
            return cls(bytes.fromhex(found["public_key"]), str(found["mode"]))
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"not VeilS-ENC's manifest: {error!s:.100}") from error


class EnclaveWord(NamedTuple):
    """An entry of VeilS-ENC in the protected log."""

    event: str
    """"finished", "refused", "says" (a line of the enclave's own), "gone"."""
    enclave: int
    words: str
    measurement: str = ""

    def pack(self) -> bytes:
        """JSON."""
        return json.dumps(self._asdict()).encode()

    @classmethod
    def parse(cls, data: bytes) -> EnclaveWord:
        """Raises FormatError."""
        try:
            found = json.loads(data)
            made = cls(**found)
        except (ValueError, TypeError) as error:
            raise FormatError(f"not a word of VeilS-ENC's: {error!s:.100}") from error
        if type(made.enclave) is not int or not all(isinstance(item, str) for item in (made.event, *made[2:])):
            raise FormatError("a word of VeilS-ENC's has an event, a number, and text")
        return made
