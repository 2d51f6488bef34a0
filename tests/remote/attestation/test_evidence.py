# SPDX-License-Identifier: GPL-2.0-or-later
"""Evidence: what services claim is shown only if everything else holds."""

from __future__ import annotations

import uuid

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.remote.attestation.model_chain import MODEL, NOW
from veil.formats.certificate_table import ARK, ASK, VCEK, pack_certificates
from veil.formats.monitor_calls import AttestedAnswer
from veil.formats.services_manifest import CHANNEL_SERVICE, NONCE_BYTES, attested_report_data, pack_manifest
from veil.remote import Policy
from veil.remote.attestation.evidence import check_evidence
from veil.remote.attestation.trust import Trust

_NONCE = bytes(range(NONCE_BYTES))
_SERVICE = uuid.UUID(int=1)
_KEY = b"the monitor's key"
_MANIFEST = pack_manifest({CHANNEL_SERVICE: _KEY, _SERVICE: b"claims"})


@pytest.mark.parametrize(
    ("signer", "key", "failures"),
    [
        ("leaf", _KEY, set()),
        (None, _KEY, {"report signature"}),
        ("another", _KEY, {"report signature"}),
        ("leaf", b"a relay's key", {"channel key"}),
    ],
    ids=["genuine", "unsigned", "another machine", "relay"],
)
def test_claims(signer: str | None, key: bytes, failures: set[str]) -> None:
    """Anybody can put nonce and manifest into a report that is not signed. Found by `make fuzz`."""
    chain = {VCEK: MODEL.leaf, ASK: MODEL.intermediate, ARK: MODEL.root}
    table = pack_certificates({guid: item.public_bytes(Encoding.DER) for guid, item in chain.items()})
    report = MODEL.report(signer, report_data=attested_report_data(_NONCE, _MANIFEST))
    evidence = AttestedAnswer(report, _MANIFEST, table)
    result = check_evidence(evidence, _NONCE, key, Trust(policy=Policy(), roots=MODEL.roots, at=NOW))
    assert {check.name for check in result.failures} == failures
    assert result.services == ({} if failures else {_SERVICE: b"claims"})
