# SPDX-License-Identifier: GPL-2.0-or-later
"""Each check has a section in docs/attestation.md, and `veil` names the one that is there."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from veil.remote import Policy
from veil.remote.attestation.checks import TOPICS, Check, Checklist

_DOCUMENT = Path(__file__).parents[3] / "docs" / "attestation.md"


def _anchors() -> list[str]:
    """As GitHub and others make them of headings."""
    headings = re.findall(r"^#+ (.+)$", _DOCUMENT.read_text(), re.MULTILINE)
    return ["#" + re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def _anchor(topic: str) -> str:
    document, _, anchor = Check("a name", False, "words", topic).explained_at.partition("#")
    assert document == "docs/attestation.md"
    return "#" + anchor


@pytest.mark.parametrize("topic", TOPICS)
def test_each_check_is_explained_once(topic: str) -> None:
    assert _anchors().count(_anchor(topic)) == 1


def test_nothing_else_is_explained() -> None:
    explained = [anchor for anchor in _anchors() if anchor.startswith("#check-")]
    assert sorted(explained) == sorted(map(_anchor, TOPICS))


def test_links_lead_somewhere() -> None:
    text = _DOCUMENT.read_text()
    assert set(re.findall(r"\]\((#[^)]+)\)", text)) <= set(_anchors())


def test_checks_that_nobody_explained_cannot_be_made() -> None:
    with pytest.raises(AssertionError, match="nobody has explained"):
        Checklist().add("a new one", True, "good", "bad")


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(Policy)])
def test_each_key_of_the_policy_is_in_the_table(key: str) -> None:
    rows = [line.split("|")[1] for line in _DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    assert sum(f"`{key}`" in row for row in rows) == 1
