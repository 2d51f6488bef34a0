# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory controller's cipher."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.snp.encryption import MemoryEncryption
from veil.snp.errors import SnapshotError

_PAGE = 4096
_addresses = st.integers(0, (1 << 40) - 1).map(lambda number: number * _PAGE)


@given(_addresses, st.binary(max_size=64))
def test_decryption_inverts_encryption(gpa: int, text: bytes) -> None:
    cipher, page = MemoryEncryption(), text.ljust(_PAGE, b"\0")
    assert cipher.decrypt_page(gpa, cipher.encrypt_page(gpa, page)) == page


@given(st.lists(_addresses, min_size=2, max_size=2, unique=True))
def test_the_same_page_elsewhere_looks_different(places: list[int]) -> None:
    cipher = MemoryEncryption()
    first, second = (cipher.encrypt_page(gpa, bytes(_PAGE)) for gpa in places)
    assert first != second
    # Nothing repeats within a page either, or equal blocks would show.
    assert len({first[start : start + 16] for start in range(0, _PAGE, 16)}) == _PAGE // 16


def test_each_launch_has_its_own_key() -> None:
    assert MemoryEncryption().encrypt_page(0, bytes(_PAGE)) != MemoryEncryption().encrypt_page(0, bytes(_PAGE))


def test_key_survives_a_snapshot() -> None:
    cipher = MemoryEncryption()
    assert MemoryEncryption.load(cipher.dump()).encrypt_page(0, bytes(_PAGE)) == cipher.encrypt_page(0, bytes(_PAGE))
    with pytest.raises(SnapshotError):
        MemoryEncryption.load(b"short")
