# SPDX-License-Identifier: GPL-2.0-or-later
"""The knock, from both ends: whom the launch names is known by it, and nobody else is, whatever they say."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from veil.formats.errors import FormatError
from veil.formats.knock import CHALLENGE_BYTES, KNOCK, LENGTH_BYTES, MAX_PROOF, Seal, pack_proof
from veil.host import knocks
from veil.host.knocks import Doorkeeper, Knock
from veil.remote import UserKey

OWNER, READER, STRANGER = (UserKey.generate() for _ in range(3))
CHALLENGE = KNOCK + b" " * (CHALLENGE_BYTES - len(KNOCK))
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


@pytest.fixture
def doorkeeper() -> Doorkeeper:
    return Doorkeeper([OWNER.fingerprint, READER.fingerprint])


def public(key: UserKey) -> bytes:
    return key.private_key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def challenged(doorkeeper: Doorkeeper) -> tuple[Knock, bytes]:
    knock = doorkeeper.hear()
    return knock, say(knock, KNOCK)


def say(knock: Knock, data: bytes, at_once: int = 1 << 16) -> bytes:
    """As a socket gives it: no more than is wanted."""
    answer = b""
    while data and not knock.over:
        assert knock.wants > 0
        count = min(knock.wants, at_once)
        answer += knock.heard(data[:count])
        data = data[count:]
    return answer


@pytest.mark.parametrize("at_once", [1, 7, 1 << 16])
@pytest.mark.parametrize("key", [OWNER, READER])
def test_whom_the_launch_names_is_known(doorkeeper: Doorkeeper, key: UserKey, at_once: int) -> None:
    knock = doorkeeper.hear()
    challenge = say(knock, KNOCK, at_once)
    assert len(challenge) == CHALLENGE_BYTES
    assert not knock.over
    say(knock, key.answer(challenge), at_once)
    assert knock.over
    assert knock.named
    assert knock.words == b""


def test_who_is_not_named_is_a_stranger(doorkeeper: Doorkeeper) -> None:
    knock, challenge = challenged(doorkeeper)
    say(knock, STRANGER.answer(challenge))
    assert knock.over
    assert not knock.named


def test_who_does_not_knock_is_a_stranger(doorkeeper: Doorkeeper) -> None:
    knock = doorkeeper.hear()
    assert say(knock, HELLO) == b""
    assert knock.over
    assert not knock.named
    assert HELLO.startswith(knock.words)
    assert knock.words


def test_a_recorded_knock_is_of_no_use(doorkeeper: Doorkeeper) -> None:
    knock, challenge = challenged(doorkeeper)
    recorded = OWNER.answer(challenge)
    say(knock, recorded)
    assert knock.named
    again, other = challenged(doorkeeper)
    assert other != challenge
    say(again, recorded)
    assert again.over
    assert not again.named


def test_who_knows_an_owners_public_key_is_no_owner(doorkeeper: Doorkeeper) -> None:
    knock, challenge = challenged(doorkeeper)
    sign = STRANGER.private_key
    say(knock, pack_proof(public(OWNER), challenge, lambda text: sign.sign(text, ec.ECDSA(hashes.SHA256()))))
    assert knock.over
    assert not knock.named


def test_who_knows_an_owners_fingerprint_cannot_bring_another_key(
    doorkeeper: Doorkeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor has the host check a signature of it: of a key that takes long, for example."""
    checked: list[bytes] = []

    def is_signed(public: bytes, signed: bytes, signature: bytes) -> bool:
        checked.append(public)
        return True

    monkeypatch.setattr(knocks, "_is_signed", is_signed)
    knock, challenge = challenged(doorkeeper)
    nonce = bytes(12)
    proof = Seal(OWNER.fingerprint).close(nonce, challenge, public(STRANGER), b"signature")
    say(knock, len(proof).to_bytes(LENGTH_BYTES, "little") + proof)
    assert knock.over
    assert not knock.named
    assert checked == []
    knock, challenge = challenged(doorkeeper)
    say(knock, OWNER.answer(challenge))
    assert checked == [public(OWNER)]


def test_who_watches_does_not_see_whose_key_it_is() -> None:
    proof = OWNER.answer(CHALLENGE)
    point = OWNER.private_key.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    for shown in (point[1:33], point[33:], OWNER.fingerprint):
        assert shown not in proof
    assert OWNER.answer(CHALLENGE) != proof


def test_a_knock_is_no_signature_of_tls() -> None:
    """What is signed begins as nothing does that TLS 1.3 has signed (RFC 8446, 4.4.3): a host that chooses challenges
    gets no signature for a handshake of its own.
    """
    signed: list[bytes] = []

    def sign(text: bytes) -> bytes:
        signed.append(text)
        return b""

    pack_proof(public(OWNER), CHALLENGE, sign)
    assert len(signed) == 1
    assert not signed[0].startswith(b" ")


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_keys_of_other_curves_fit(curve: ec.EllipticCurve) -> None:
    key = UserKey._around(ec.generate_private_key(curve))
    knock, challenge = challenged(Doorkeeper([key.fingerprint]))
    say(knock, key.answer(challenge))
    assert knock.named


def test_a_named_key_of_a_kind_that_nobody_can_check() -> None:
    """The launch has its fingerprint only. Anyone who knows the key can bring it: that ends nothing of the host's."""
    p256, another = bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030102")
    key = public(UserKey.generate()).replace(p256, another)
    doorkeeper = Doorkeeper([hashlib.sha256(key).digest()])
    knock, challenge = challenged(doorkeeper)
    say(knock, pack_proof(key, challenge, lambda _: bytes(70)))
    assert knock.over
    assert not knock.named


@pytest.mark.parametrize("length", [0, MAX_PROOF + 1, 0xFFFF])
def test_proofs_of_impossible_lengths(doorkeeper: Doorkeeper, length: int) -> None:
    """They are not waited for."""
    knock, _ = challenged(doorkeeper)
    say(knock, length.to_bytes(LENGTH_BYTES, "little"))
    assert knock.over
    assert not knock.named


@pytest.mark.parametrize("challenge", [b"", CHALLENGE[:-1], CHALLENGE + b"x", bytes(CHALLENGE_BYTES)])
def test_the_user_signs_challenges_only(challenge: bytes) -> None:
    with pytest.raises(FormatError, match="challenge"):
        OWNER.answer(challenge)


@given(st.binary(max_size=700), st.integers(1, 64), st.booleans())
def test_whatever_is_said(data: bytes, at_once: int, knocks_first: bool) -> None:
    """It ends, or more is wanted, a bounded number of bytes; nobody becomes known."""
    knock = Doorkeeper([hashlib.sha256(b"").digest()]).hear()
    say(knock, KNOCK + data if knocks_first else data, at_once)
    assert not knock.named
    assert knock.over or 0 < knock.wants <= MAX_PROOF


@given(st.integers(0, 200), st.integers(1, 255))
def test_a_changed_proof(at: int, flip: int) -> None:
    knock, challenge = challenged(Doorkeeper([OWNER.fingerprint]))
    proof = bytearray(OWNER.answer(challenge))
    proof[LENGTH_BYTES + at % (len(proof) - LENGTH_BYTES)] ^= flip
    say(knock, bytes(proof))
    assert knock.over
    assert not knock.named
