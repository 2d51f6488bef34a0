# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may sign modules, and what is not a signature."""

from __future__ import annotations

import contextlib
import hashlib

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization.pkcs7 import PKCS7Options
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.services.kci.modules.made_module import MadeModule, append_signature, authority, sign
from veil.services.kci.modules import Keyring, ModuleRefused, admit
from veil.services.kci.modules.signature import MARKER, split_signature, verify_signature

_BODY = MadeModule().build()
_FILE = append_signature(_BODY, sign(_BODY))
_KEYRING = Keyring.of_kernel(authority().der)
_PLAIN = [PKCS7Options.DetachedSignature, PKCS7Options.Binary, PKCS7Options.NoAttributes, PKCS7Options.NoCerts]


def _refused(file: bytes, why: str, keyring: Keyring = _KEYRING) -> None:
    with pytest.raises(ModuleRefused, match=why):
        admit(file, keyring)


def test_a_signed_module() -> None:
    admitted = admit(_FILE, _KEYRING)
    assert admitted.body == _BODY
    assert admitted.digest == hashlib.sha256(_FILE).digest()
    assert admitted.signer is not None
    assert admitted.signer.name == "CN=builder"
    assert admitted.signer.fingerprint == hashlib.sha256(authority().der).digest()


@pytest.mark.parametrize("algorithm", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
@pytest.mark.parametrize("kind", ["P-384", "2048"])
def test_algorithms(algorithm: hashes.SHA256, kind: str) -> None:
    signer = authority("other", kind)
    file = append_signature(_BODY, sign(_BODY, signer, algorithm=algorithm))
    assert admit(file, _KEYRING.with_certificates([signer.der])).signer is not None
    _refused(file, "not allowed")


def test_a_weak_key() -> None:
    weak = authority("weak", "1024")
    _refused(append_signature(_BODY, sign(_BODY, weak)), "does not fit", Keyring.of_kernel(weak.der))


def test_modules_without_a_signature() -> None:
    _refused(_BODY, "not signed, and its hash [0-9a-f]{64} is not listed")
    # Somebody took it away.
    _refused(_FILE[: -len(MARKER)], "not signed")
    # The marker must be the end.
    _refused(_FILE + b"\0", "not signed")
    _refused(b"", "not signed")


def test_a_listed_hash_needs_no_signature() -> None:
    nobody = Keyring([])
    listed = {hashlib.sha256(_BODY).digest()}
    admitted = admit(_BODY, nobody, listed)
    assert (admitted.body, admitted.signer) == (_BODY, None)
    with pytest.raises(ModuleRefused):
        admit(_BODY + b"\0", nobody, listed)
    with pytest.raises(ModuleRefused):
        admit(_FILE, nobody, listed)
    # Of a signed file the hash is over all of it.
    assert admit(_FILE, nobody, {hashlib.sha256(_FILE).digest()}).body == _BODY


def test_another_files_signature() -> None:
    other = sign(_BODY + b"\0")
    _refused(append_signature(_BODY, other), "not over this file")


def test_another_key() -> None:
    # Issuer and serial number are only words: somebody else's certificate can have the same.
    liar = authority("builder", "2048")
    assert liar.certificate.issuer == authority().certificate.issuer
    _refused(append_signature(_BODY, sign(_BODY, liar)), "does not fit the signer's key")
    _refused(append_signature(_BODY, sign(_BODY, authority("stranger"))), "a key that is not allowed")
    _refused(append_signature(_BODY, sign(_BODY, authority("builder", serial=8))), "a key that is not allowed")
    liar = authority("builder", "P-384 of a liar")
    _refused(append_signature(_BODY, sign(_BODY, liar)), "not over this file")


def test_two_signers() -> None:
    _refused(append_signature(_BODY, sign(_BODY, authority(), authority("stranger"))), "2 signers")


@pytest.mark.parametrize(
    "options",
    [
        _PLAIN[:2] + _PLAIN[3:],  # signed attributes
        _PLAIN[:3],  # certificates
        [PKCS7Options.Binary, *_PLAIN[2:]],  # content
    ],
)
def test_forms_that_distributions_do_not_use(options: list[PKCS7Options]) -> None:
    _refused(append_signature(_BODY, sign(_BODY, options=options)), "not a CMS message with signers by issuer")


@pytest.mark.parametrize("head", [bytes(8), bytes((0, 0, 1)) + bytes(5), bytes((0, 4, 2)) + bytes(5),
                                  bytes((0, 0, 2, 0, 9, 0, 0, 0)), bytes((0, 0, 2, 0, 0, 0, 0, 1))])  # fmt: skip
def test_other_kinds_of_signatures(head: bytes) -> None:
    _refused(append_signature(_BODY, sign(_BODY), head=head), "not a PKCS#7 message")


@pytest.mark.parametrize("length", [0, len(_FILE), 1 << 31, (1 << 32) - 1], ids=["none", "the file", "2 GiB", "4 GiB"])
def test_absurd_lengths(length: int) -> None:
    end = len(_FILE) - len(MARKER)
    _refused(_FILE[: end - 4] + length.to_bytes(4, "big") + MARKER, f"claims {length} bytes")
    _refused(b"abc" + MARKER, "ends before its signature begins")


def test_garbage_around_the_message() -> None:
    message = sign(_BODY)
    _refused(append_signature(_BODY, message + b"\0"), "not a CMS message")
    _refused(append_signature(_BODY, message[:-1]), "not a CMS message|not over this file")
    # Bytes between body and message belong to the body.
    _refused(append_signature(_BODY + b"\0", message), "not over this file")


@given(st.integers(0, len(_FILE) - 1), st.integers(1, 255))
def test_no_byte_can_change(at: int, flip: int) -> None:
    changed = bytearray(_FILE)
    changed[at] ^= flip
    with pytest.raises(ModuleRefused):
        admit(bytes(changed), _KEYRING)


@settings(max_examples=examples(100))
@given(st.binary(max_size=300))
def test_any_bytes_as_a_signature(message: bytes) -> None:
    with pytest.raises(ModuleRefused):
        verify_signature(_BODY, message, _KEYRING)


@given(st.binary(max_size=80))
def test_any_bytes_as_a_file(data: bytes) -> None:
    for file in (data, data + MARKER):
        with contextlib.suppress(ModuleRefused):
            split_signature(file)


def test_the_kernels_certificate_list() -> None:
    both = authority().der + authority("other", "2048").der
    assert len(Keyring.of_kernel(both)) == 2
    assert len(Keyring.of_kernel(b"")) == 0
    for bad, why in ((both[:-1], "ends within"), (both + b"\0", "damaged"), (b"\x30\x82\0\x01x", "is not valid")):
        with pytest.raises(ModuleRefused, match=why):
            Keyring.of_kernel(bad)
