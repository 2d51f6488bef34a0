# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of targets."""

from __future__ import annotations

from fuzz import (
    audit_log,
    certificates,
    channel,
    code_integrity,
    enclave_ioctls,
    enclave_requests,
    enclave_runtime,
    enclave_service,
    evidence,
    guest_messages,
    igvm,
    kernel_code,
    manifests,
    modules,
    policies,
    reports,
)
from fuzz.target import Target

__all__ = ["TARGETS"]

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (
        reports,
        certificates,
        evidence,
        guest_messages,
        igvm,
        kernel_code,
        manifests,
        modules,
        code_integrity,
        channel,
        policies,
        audit_log,
        enclave_ioctls,
        enclave_requests,
        enclave_runtime,
        enclave_service,
    )
    for target in module.TARGETS
}
