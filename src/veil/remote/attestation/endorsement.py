# SPDX-License-Identifier: GPL-2.0-or-later
"""What an endorsement certificate (VCEK, VLEK) says of its processor, in extensions of its own (AMD 57230, "VCEK
Certificate and KDS Interface Specification"): product, chip ID, TCB version."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509

from veil.formats.attestation_report import TcbLayout, TcbVersion
from veil.formats.certificate_table import VCEK_OID
from veil.formats.errors import FormatError

__all__ = ["Endorsement"]

_PARTS = {"boot_loader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8"}
_FMC = "3.9"
#: Parts that no generation known here has: bytes 2 to 5 of a TCB_VERSION, zero.
_NO_PARTS = ("3.4", "3.5", "3.6", "3.7")
#: Bytes of a chip's ID: in reports, and in the certificates of all chips but Turin's.
_CHIP_ID = 64
_TURIN_CHIP_ID = 8


@dataclass(frozen=True)
class Endorsement:
    """What a VCEK or VLEK says of its processor."""

    product: str
    parts: dict[str, int]
    hwid: bytes | None
    """As it stands there; None in a VLEK's."""
    csp_id: str | None

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Endorsement:
        """Raises FormatError unless all that must be there is, once, in the one right form."""
        values = _values(certificate)
        parts = {name: _integer(values, suffix) for name, suffix in _PARTS.items()}
        if _FMC in values:
            parts["fmc"] = _integer(values, _FMC)
        for suffix in values:
            known = suffix in (*_PARTS.values(), _FMC) or (suffix in _NO_PARTS and _integer(values, suffix) == 0)
            if suffix.startswith("3.") and not known:
                raise FormatError(f"the endorsement certificate has a TCB part that is not known ({VCEK_OID}{suffix})")
        csp = _string(values, "5") if "5" in values else None
        return cls(_string(values, "2"), parts, values.get("4"), csp)

    @property
    def layout(self) -> TcbLayout:
        """Turin's have a part more."""
        return TcbLayout.TURIN if "fmc" in self.parts else TcbLayout.MILAN_GENOA

    @property
    def chip_id(self) -> bytes | None:
        """The chip's ID as reports have it, in 64 bytes; None if the extension has no form that is known.

        Turin's chips have IDs of 8 bytes, and reports have zeros behind them.
        """
        hwid = self.hwid or b""
        return hwid.ljust(_CHIP_ID, b"\0") if len(hwid) in (_TURIN_CHIP_ID, _CHIP_ID) and any(hwid) else None

    @property
    def tcb(self) -> TcbVersion:
        """The TCB version that the key is bound to."""
        return TcbVersion.of(self.layout, **self.parts)


def _values(certificate: x509.Certificate) -> dict[str, bytes]:
    try:
        extensions = certificate.extensions
    except ValueError as error:
        raise FormatError("the endorsement certificate's extensions are unreadable") from error
    values: dict[str, bytes] = {}
    for extension in extensions:
        name = extension.oid.dotted_string
        if name.startswith(VCEK_OID) and isinstance(extension.value, x509.UnrecognizedExtension):
            values[name.removeprefix(VCEK_OID)] = extension.value.value
    return values


def _integer(values: dict[str, bytes], suffix: str) -> int:
    data = values.get(suffix)
    if data is None:
        raise FormatError(f"the endorsement certificate lacks the extension {VCEK_OID}{suffix}")
    value = int.from_bytes(data[2:], "big")
    # DER INTEGER of 0 to 255; a value from 128 on has a zero before it.
    if value > 255 or data != bytes((2, value // 128 + 1)) + value.to_bytes(value // 128 + 1, "big"):
        raise FormatError(f"the endorsement certificate's extension {VCEK_OID}{suffix} is not a number from 0 to 255")
    return value


def _string(values: dict[str, bytes], suffix: str) -> str:
    data = values.get(suffix, b"")
    if len(data) < 2 or data[0] not in (0x16, 0x0C) or data[1] != len(data) - 2 or data[1] > 127:
        raise FormatError(f"the endorsement certificate's extension {VCEK_OID}{suffix} is not a string")
    try:
        return data[2:].decode("ascii")
    except ValueError as error:
        raise FormatError(
            f"the endorsement certificate's extension {VCEK_OID}{suffix} is not an ASCII string"
        ) from error
