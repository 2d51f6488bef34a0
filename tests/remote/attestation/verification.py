# SPDX-License-Identifier: GPL-2.0-or-later
"""Verify a report of a model chain, and name the checks that failed."""

from __future__ import annotations

import pytest

from tests.remote.attestation.model_chain import (
    MODEL,
    NOW,
    Model,
)
from veil.remote import (
    Verification,
    VerificationFailed,
)
from veil.remote.attestation.verify import verify_report


def verify(model: Model = MODEL, report: bytes | None = None, **more: object) -> Verification:
    arguments = {"roots": model.roots, "at": NOW, **more}
    return verify_report(report or model.report(), model.chain, **arguments)  # type: ignore[arg-type]


def failed(result: Verification) -> set[str]:
    with pytest.raises(VerificationFailed):
        result.raise_for_failure()
    return {check.name for check in result.failures}


Fields = dict[str, int | bytes]
