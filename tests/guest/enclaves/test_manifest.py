# SPDX-License-Identifier: GPL-2.0-or-later
"""Manifests: what is read, what is refused, what the defaults allow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.guest.enclaves.calls import allowed_numbers, system_calls
from veil.guest.enclaves.manifest import SIGNALS, Manifest
from veil.guest.errors import GuestImageError

_TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
_PATHS = st.lists(st.sampled_from(["a", "b.txt", "ü", '"', "\\"]), min_size=1, max_size=3).map(
    lambda parts: "/" + "/".join(parts)
)
_MANIFESTS = st.builds(
    Manifest,
    memory=st.sampled_from([1 << 20, 3 << 20, 1 << 32]),
    threads=st.integers(1, 64),
    end_on_unsupported=st.booleans(),
    arguments=st.lists(_TEXTS, max_size=3).map(tuple),
    environment=st.dictionaries(st.sampled_from(["A", "B C", "é"]), _TEXTS, max_size=2),
    trusted=st.lists(_PATHS, max_size=2).map(tuple),
    sealed=st.lists(_PATHS, max_size=2).map(tuple),
    secrets=st.lists(st.sampled_from(["key", "tls.pem", "_1-2"]), max_size=2).map(tuple),
    allow=st.sampled_from([(), ("network",), ("kill", "socket")]),
    signals=st.lists(st.sampled_from(sorted(SIGNALS)), unique=True).map(tuple),
    programs=st.lists(_PATHS, max_size=2).map(tuple),
)


def test_the_defaults_let_nothing_in_from_outside() -> None:
    manifest = Manifest.parse("")
    assert not manifest.arguments_outside
    assert not manifest.environment_outside
    assert (manifest.trusted, manifest.read, manifest.passed, manifest.sealed, manifest.signals) == ((),) * 5
    assert manifest.secrets == ()
    assert manifest.programs == ()
    names = {call.name for call in system_calls() if call.number in allowed_numbers(manifest.allow, manifest.deny)}
    assert {"read", "write", "mmap", "clone"} <= names
    assert not names & {"socket", "connect", "setuid"}


@given(_MANIFESTS)
def test_what_is_written_is_read(manifest: Manifest) -> None:
    assert Manifest.parse(manifest.text()) == manifest


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("memroy = '64M'", "no key memroy"),
        ("[files]\npas = []", "no key files.pas"),
        ("memory = '1K'", "memory must be 1M to 4G"),
        ("memory = 'much'", "not a size"),
        ("threads = 65", "1 to 64"),
        ("threads = true", "must be a number"),
        ("files = 3", "must be a table"),
        ("[files]\npass = ['tmp']", "absolute path"),
        ("[files]\ntrusted = ['/a/../b']", "absolute path"),
        ("[files]\npass = '/tmp'", "list of texts"),
        ("[files]\nsecrets = ['../key']", "'../key' is not a name"),
        ("[files]\nsecrets = ['']", "is not a name"),
        ("[calls]\nallow = ['everything']", "no system call"),
        ("signals = ['SEGV']", "not one of"),
        ("unsupported = 'ignore'", '"refuse" or "end"'),
        ("[environment]\noutside = ['A=B']", "name of a variable"),
        ("a = ", "Invalid value"),
    ],
)
def test_a_wrong_manifest_is_one_line(text: str, words: str) -> None:
    with pytest.raises(GuestImageError, match=words) as caught:
        Manifest.parse(text)
    assert "\n" not in str(caught.value)


def test_denied_calls_are_not_allowed() -> None:
    names = {call.name: call.number for call in system_calls()}
    assert names["clone"] not in allowed_numbers((), ("clone",))
    assert names["socket"] in allowed_numbers(("network",), ())
    assert names["socket"] not in allowed_numbers(("network",), ("network",))
