# SPDX-License-Identifier: GPL-2.0-or-later
"""Values through JSON and back, and what nobody of ours would have written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from veil.cvm.plain_values import PlainValueError, from_plain, to_plain, typed

_SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.binary())
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.one_of(st.text(), st.integers()), inner), max_leaves=20
)
_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text()),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["map", "base64", "x"]), inner)
        | st.fixed_dictionaries({"map": st.lists(st.lists(inner, min_size=2, max_size=2))})
    ),
    max_leaves=20,
)  # fmt: skip


@dataclass(frozen=True)
class _Inner:
    number: int
    pair: tuple[int, str]


@dataclass(frozen=True)
class _Outer:
    name: str
    data: bytes
    inner: _Inner | None
    many: tuple[bytes, ...]
    settings: Mapping[str, Mapping[str, Any]]


_OUTER = _Outer("n", b"\0\xff", _Inner(1, (2, "x")), (b"a", b""), {"log": {"memory": 3, "full": None}})


@settings(max_examples=examples(100))
@given(value=_VALUES)
def test_round_trip(value: Any) -> None:
    assert from_plain(json.loads(json.dumps(to_plain(value)))) == value


@settings(max_examples=examples(100))
@given(value=_JSON)
def test_what_nobody_wrote(value: Any) -> None:
    try:
        found = from_plain(value)
    except (LookupError, TypeError, ValueError):
        return
    for kind in (_Outer, tuple[_Inner, ...], Mapping[str, int]):
        said = ""
        try:
            typed(found, kind, "value")
        except PlainValueError as error:
            said = str(error)
        assert said.isprintable()


def test_a_dataclass() -> None:
    assert typed(from_plain(to_plain(_OUTER)), _Outer, "value") == _OUTER


def test_order_of_names_says_nothing() -> None:
    assert json.dumps(to_plain({"a": 1, "b": 2})) == json.dumps(to_plain({"b": 2, "a": 1}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": 5}, "value.name is of the type int, not str"),
        ({"name": "x" * 70_000}, "value.name has 70000 characters"),
        ({"data": "text"}, "value.data is of the type str, not bytes"),
        ({"inner": {"number": True, "pair": [1, "x"]}}, "value.inner.number is of the type bool"),
        ({"inner": {"number": 1 << 64, "pair": [1, "x"]}}, "value.inner.number is a number of 65 bits"),
        ({"inner": {"number": 1, "pair": [1]}}, "value.inner.pair has 1 items, not 2"),
        ({"inner": {"number": 1}}, "value.inner lacks pair"),
        ({"inner": []}, "value.inner is of the type list"),
        ({"many": {"a": b""}}, "value.many is of the type dict"),
        ({"many": [b""] * 70_000}, "value.many has 70000 items"),
        ({"settings": {1: {}}}, "a name in value.settings is of the type int"),
        ({"settings": {"log": {"deep": [[[[[[[[[[]]]]]]]]]]}}}, "nested too deeply"),
        ({"more": 1}, "value has 'more', which this version does not know"),
    ],
)  # fmt: skip
def test_what_is_refused(change: dict[str, Any], words: str) -> None:
    value = from_plain(to_plain(_OUTER)) | change
    with pytest.raises(PlainValueError, match=words):
        typed(value, _Outer, "value")
