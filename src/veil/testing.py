# SPDX-License-Identifier: GPL-2.0-or-later
"""A pytest plugin: the fixture `cvm`, a confidential VM that tests of a session share.

It is booted once and resumed from a snapshot afterwards. Tests that change the guest for good should make their own
`ConfidentialVM`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from veil.cvm import ConfidentialVM

__all__ = ["cvm"]


@pytest.fixture(scope="session")
def cvm() -> Iterator[ConfidentialVM]:
    """A running CVM with 512 MiB and one VCPU."""
    from veil.cvm import ConfidentialVM

    with ConfidentialVM(memory="512M") as vm:
        yield vm
