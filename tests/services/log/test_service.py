# SPDX-License-Identifier: GPL-2.0-or-later
"""What attestation says of VeilS-LOG; the words of other services that it keeps."""

from __future__ import annotations

import pytest

from tests.monitor.harness import Bench
from tests.services.log.harness import SMALLEST, boot, manifest, reader, service
from veil.formats.log import EntryKind, LogManifest, ServiceWord


@pytest.fixture
def bench() -> Bench:
    return boot()


def test_manifest(bench: Bench) -> None:
    found = LogManifest.parse(manifest(bench))
    assert (found.memory, found.full) == (SMALLEST, "halt")


def test_words_are_entries(bench: Bench) -> None:
    for number in range(3):
        assert service(bench).keep_word(7, b"word %d" % number)
    words = [entry for entry in reader(bench).fetch() if entry.kind == EntryKind.WORD]
    assert [ServiceWord.parse(entry.body) for entry in words] == [(7, b"word %d" % number) for number in range(3)]


def test_how_far_it_has_come(bench: Bench) -> None:
    """Others see by it whether an owner has read what they said."""
    before = service(bench).log_span()
    assert (before.size, before.gone) == (SMALLEST, 0)
    assert service(bench).keep_word(7, b"a word")
    told = service(bench).log_span().told
    assert told > before.told + len(b"a word")
    service(bench).store.acknowledge(service(bench).store.next)
    assert service(bench).log_span() == (SMALLEST, told, told)
    assert bench.services is not None
    assert bench.services._log_span() == (SMALLEST, told, told)
