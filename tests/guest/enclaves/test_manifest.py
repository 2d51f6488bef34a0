# SPDX-License-Identifier: GPL-2.0-or-later
"""Manifests: what is read, what is refused, what the defaults allow."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from veil.guest.enclaves.calls import allowed_numbers, system_calls
from veil.guest.enclaves.manifest import SIGNALS, Manifest
from veil.guest.errors import GuestImageError

_TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
_PATHS = st.lists(st.sampled_from(["a", "b.txt", "ü", '"', "\\"]), min_size=1, max_size=3).map(
    lambda parts: "/" + "/".join(parts)
)


def _some(texts: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(texts, max_size=2, unique=True).map(tuple)


_MANIFESTS = st.builds(
    Manifest,
    memory=st.sampled_from([1 << 20, 3 << 20, 1 << 32]),
    threads=st.integers(1, 64),
    end_on_unsupported=st.booleans(),
    arguments=st.lists(_TEXTS, max_size=3).map(tuple),
    environment=st.dictionaries(st.sampled_from(["A", "B C", "é"]), _TEXTS, max_size=2),
    environment_outside=st.sampled_from([(), ("*",), ("D", "E")]),
    trusted=_some(_PATHS.map(lambda path: f"/trusted{path}")),
    read=_some(_PATHS.map(lambda path: f"/read{path}/")),
    sealed=_some(_PATHS),
    secrets=_some(st.sampled_from(["key", "tls.pem", "_1-2"])),
    allow=st.sampled_from([(), ("network",), ("kill", "socket")]),
    deny=st.sampled_from([(), ("getrandom",)]),
    signals=_some(st.sampled_from(sorted(SIGNALS))),
    programs=_some(_PATHS),
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


@settings(max_examples=examples(100))
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
        ("memory = '1M'\nstack = '2M'", "stack is part of memory: 2M is more than 1M"),
        ("threads = 0x" + "f" * 5000, "threads is a number of more than 64 bits"),
        ("threads = " + "9" * 5000, "Exceeds the limit"),
        ("a = " + "[" * 5000, "too deep to be read"),
        ("a = '" + "x" * (1 << 20) + "'", "more than the 1 MiB"),
        ("programs = ['/bin/']", "programs: '/bin/': no '/' at its end"),
        ("directory = '/tmp/'", "directory: '/tmp/': no '/' at its end"),
        ("[files]\npass = ['/tmp//']", "absolute path"),
        ("[files]\npass = ['/" + "x" * 1000 + "']", "1000 letters at most, not 1001"),
        ("[files]\npass = ['/a']\nsealed = ['/a']", "'/a' is in files.sealed and in files.pass: which is it"),
        ("[files]\npass = ['/a/']\nread = ['/a']", "'/a' is in files.pass and in files.read"),
        ("[files]\npass = ['/a', '/a/']", "'/a' is in files.pass and in files.pass"),
        ("[files]\npass = ['/a', '/a']", "files.pass: '/a' is there twice"),
        ("[files]\nread = ['/a']\ntrusted = ['/a']", "'/a' is in files.read and in files.trusted"),
        ("[files]\nread = ['/run/secrets/k']\nsecrets = ['k']", "'/run/secrets/k' is in files.read and in files.secr"),
        ("[files]\nread = ['/dev/urandom']", "in files.read and in what the runtime answers itself"),
        ("[files]\nsecrets = ['key', 'key']", "files.secrets: 'key' is there twice"),
        ("signals = ['INT', 'INT']", "signals: 'INT' is there twice"),
        ("[calls]\nallow = ['network']\ndeny = ['network']", "'network' is in calls.allow and in calls.deny"),
        ("[environment]\noutside = ['*', 'A']", "is all variables: name no other"),
        ("[environment]\noutside = ['A']\nfixed = { A = '1' }", "'A' is in environment.fixed and in env"),
        ("stack = '128K'\n[environment]\nfixed = { A = '" + "x" * 70000 + "' }\n", "70011 bytes of the stack: 65536"),
        (f"[arguments]\nfixed = {['x'] * 2049}", "has 2049 texts, and 2048 at most"),
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


@pytest.mark.parametrize("value", ["/a\udcff", "/a\0"])
def test_a_text_that_cannot_be_written_down(value: str) -> None:
    """From a command line, which TOML's own escapes cannot give."""
    for values in ({"files": {"pass": [value]}}, {"directory": value}, {"environment": {"fixed": {"A": value}}}):
        with pytest.raises(GuestImageError, match=r"is not UTF-8|NUL character"):
            Manifest.of(values)


def test_rules_of_one_kind_below_another_are_none_too_many() -> None:
    """The longer path counts, as the documentation says."""
    Manifest.parse("[files]\npass = ['/a/']\nread = ['/a/b/']\nsealed = ['/a/b/c']\ntrusted = ['/a/']")


_WORDS = st.one_of(
    st.sampled_from(
        ["memory", "stack", "threads", "files", "pass", "sealed", "secrets", "calls", "allow", "directory"]
    ),
    st.sampled_from(
        ["=", "[", "]", ".", ",", "'", '"', "{", "}", "\n", "/", "-", "0x", "1e", "network", "'/a'", "true"]
    ),
    st.text(max_size=3),
    st.integers().map(str),
)


@given(st.lists(_WORDS, max_size=12).map("".join))
def test_any_text_is_a_manifest_or_one_line(text: str) -> None:
    try:
        manifest = Manifest.parse(text)
    except GuestImageError:
        return
    assert Manifest.parse(manifest.text()) == manifest


def test_what_is_built_can_be_read_again() -> None:
    """In the image its text is written out: twice as long, if all of it is backslashes."""
    variable = {"X": "\\" * 600_000}
    with pytest.raises(GuestImageError, match="written out it is more than the 1 MiB"):
        Manifest.of({"stack": "64M", "environment": {"fixed": variable}})
    variable["X"] = variable["X"][: len(variable["X"]) // 2]
    manifest = Manifest.of({"stack": "64M", "environment": {"fixed": variable}})
    assert Manifest.parse(manifest.text()) == manifest
