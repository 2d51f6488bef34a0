# SPDX-License-Identifier: GPL-2.0-or-later
"""Data structures of the specifications, each declared once, with its offsets asserted."""

from __future__ import annotations

from veil.formats.offsets import check_offsets
from veil.snp.layouts.cpuid_page import CPUID_COUNT_MAX, CpuidFunction, CpuidPage
from veil.snp.layouts.secrets_page import SECRETS_VERSION, SVSM_MAX_VERSION, SecretsPage
from veil.snp.layouts.vmcb import (
    EVENT_ERROR_CODE,
    EVENT_EXCEPTION,
    EVENT_NMI,
    EVENT_VALID,
    GUEST_INTERRUPT_MASK,
    V_IGN_TPR,
    V_INTR_PRIO_SHIFT,
    V_INTR_VECTOR_SHIFT,
    V_IRQ,
    V_NMI,
    V_NMI_ENABLE,
    V_NMI_MASK,
    V_TPR,
    Vmcb,
)
from veil.snp.layouts.vmsa import (
    SUPPORTED_FEATURES,
    V_BUSY,
    V_INT_SHADOW,
    SevFeatures,
    Vmsa,
    VmsaSegment,
    unsupported_features,
)

__all__ = [
    "CPUID_COUNT_MAX",
    "EVENT_ERROR_CODE",
    "EVENT_EXCEPTION",
    "EVENT_NMI",
    "EVENT_VALID",
    "GUEST_INTERRUPT_MASK",
    "SECRETS_VERSION",
    "SUPPORTED_FEATURES",
    "SVSM_MAX_VERSION",
    "V_BUSY",
    "V_IGN_TPR",
    "V_INTR_PRIO_SHIFT",
    "V_INTR_VECTOR_SHIFT",
    "V_INT_SHADOW",
    "V_IRQ",
    "V_NMI",
    "V_NMI_ENABLE",
    "V_NMI_MASK",
    "V_TPR",
    "CpuidFunction",
    "CpuidPage",
    "SecretsPage",
    "SevFeatures",
    "Vmcb",
    "Vmsa",
    "VmsaSegment",
    "check_offsets",
    "unsupported_features",
]
