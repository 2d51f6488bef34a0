# SPDX-License-Identifier: GPL-2.0-or-later
"""The runtime's ChaCha20-Poly1305 and BLAKE2b, against a library's."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    place = tmp_path_factory.mktemp("cryptography") / "runtime.so"
    source = Path(str(files("veil.guest.enclaves.runtime"))) / "src"
    command = [
        "cc",
        "-shared",
        "-fPIC",
        "-O2",
        "-o",
        *map(str, (place, source / "chacha20_poly1305.c", source / "blake2b.c")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(place))


_BYTES = st.binary(max_size=300) | st.integers(0, 4200).map(lambda size: b"\xff" * size)


@given(key=st.binary(min_size=32, max_size=32), nonce=st.binary(min_size=12, max_size=12), extra=_BYTES, data=_BYTES)
def test_sealed_as_rfc_8439_says(library: ctypes.CDLL, key: bytes, nonce: bytes, extra: bytes, data: bytes) -> None:
    buffer, tag = ctypes.create_string_buffer(data, len(data) + 1), ctypes.create_string_buffer(16)
    lengths = ctypes.c_uint64(len(extra)), ctypes.c_uint64(len(data))
    library.seal(key, nonce, extra, lengths[0], buffer, lengths[1], tag)
    assert buffer.raw[:-1] + tag.raw == ChaCha20Poly1305(key).encrypt(nonce, data, extra)
    library.unseal.restype = ctypes.c_bool
    assert library.unseal(key, nonce, extra, lengths[0], buffer, lengths[1], tag)
    assert buffer.raw[:-1] == data


@given(data=st.binary(min_size=1, max_size=100), position=st.integers(0, 10_000))
def test_another_bit_is_refused(library: ctypes.CDLL, data: bytes, position: int) -> None:
    sealed = bytearray(ChaCha20Poly1305(bytes(32)).encrypt(bytes(12), data, b""))
    position %= 8 * len(sealed)
    sealed[position // 8] ^= 1 << position % 8
    changed = bytes(sealed[:-16])
    buffer = ctypes.create_string_buffer(changed, len(changed) + 1)
    library.unseal.restype = ctypes.c_bool
    good = library.unseal(
        bytes(32), bytes(12), b"", ctypes.c_uint64(0), buffer, ctypes.c_uint64(len(data)), bytes(sealed[-16:])
    )
    assert not good
    assert buffer.raw[:-1] == changed


@given(data=_BYTES)
def test_blake2b_as_rfc_7693_says(library: ctypes.CDLL, data: bytes) -> None:
    digest = ctypes.create_string_buffer(32)
    library.blake2b(data, ctypes.c_uint64(len(data)), digest)
    assert digest.raw == hashlib.blake2b(data, digest_size=32).digest()
