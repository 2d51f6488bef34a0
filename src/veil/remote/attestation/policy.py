# SPDX-License-Identifier: GPL-2.0-or-later
"""What a user demands of a report, beyond its being genuine; from Python or from a TOML file."""

from __future__ import annotations

import dataclasses
import enum
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from veil.formats.attestation_report import FIRST_UNKNOWN_POLICY_BIT, REPORT_VERSIONS, PlatformInfo
from veil.formats.domains import VMPLS
from veil.remote.errors import RemoteError

__all__ = ["Demand", "Policy"]

#: A long policy has a tenth. tomllib takes a time that grows with the square of a key's length: here a second at most.
_MAX_BYTES = 16 << 10
_TCB_PARTS = ("boot_loader", "tee", "snp", "microcode", "fmc")
_NO_BITS = PlatformInfo(0)
_PLATFORM_BITS = {bit.name.lower(): bit for bit in PlatformInfo if bit.name}


class Demand(enum.StrEnum):
    """What a bit of the guest's policy must be: set, clear, or anything."""

    REQUIRED = "required"
    FORBIDDEN = "forbidden"
    EITHER = "either"


@dataclass(frozen=True)
class Policy:
    """An empty tuple or None demands nothing. Bytes are bytes here and hexadecimal in files."""

    measurement: tuple[bytes, ...] = ()
    """Launch digests that are good, 48 bytes each."""
    report_data: bytes | None = None
    host_data: bytes | None = None
    family_id: bytes | None = None
    image_id: bytes | None = None
    chip_ids: tuple[bytes, ...] = ()
    id_key_digests: tuple[bytes, ...] = ()
    """The ID block must be signed by a key with one of these SHA-384 digests."""
    author_key_digests: tuple[bytes, ...] = ()
    vmpl: int | None = None
    max_vmpl: int | None = None
    allow_host_requested: bool = False
    """A report that the host asked for, which has no VMPL."""
    allow_debug: bool = False
    allow_migration_agent: bool = False
    allow_smt: bool = True
    require_single_socket: bool = False
    cxl_allow: Demand = Demand.FORBIDDEN
    """CXL_ALLOW is a permission: the host may put memory and devices behind a cable. The four after it are promises."""
    mem_aes_256_xts: Demand = Demand.EITHER
    rapl_dis: Demand = Demand.EITHER
    ciphertext_hiding: Demand = Demand.EITHER
    page_swap_disable: Demand = Demand.EITHER
    accept_guest_policy_bits: tuple[int, ...] = ()
    """Bits of the guest's policy that this verifier does not know and its user does. Any other unknown bit that is set
    is a failure: it may permit the host something."""
    minimum_abi: tuple[int, int] | None = None
    """Of the guest policy: major, minor."""
    minimum_guest_svn: int = 0
    minimum_report_version: int = REPORT_VERSIONS[0]
    minimum_tcb: Mapping[str, int] = field(default_factory=dict)
    """Of REPORTED_TCB, by part; a part that the processor's generation lacks is a failure."""
    minimum_launch_tcb: Mapping[str, int] = field(default_factory=dict)
    """The same of LAUNCH_TCB: firmware that was updated later may have had flaws when the guest was launched."""
    minimum_launch_mitigations: int = 0
    """Bits that must be set in LAUNCH_MIT_VECTOR."""
    require_platform: PlatformInfo = _NO_BITS
    forbid_platform: PlatformInfo = _NO_BITS
    products: tuple[str, ...] = ()
    """Product lines, as Milan, Genoa, Turin."""
    allow_vlek: bool = True
    allow_provisional_firmware: bool = False
    """Firmware that is running but not committed can still be rolled back."""
    allow_unknown_fields: bool = True
    """Bits and bytes that the report's version does not define, outside of guest policy and reported TCB version."""

    @classmethod
    def load(cls, path: Path) -> Policy:
        """From a TOML file; raises RemoteError naming file and key."""
        try:
            with path.open("rb") as stream:
                data = stream.read(_MAX_BYTES + 1)
            if len(data) > _MAX_BYTES:
                raise RemoteError(f"the policy {path} has more than {_MAX_BYTES} bytes")
            text = data.decode()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
            raise RemoteError(f"cannot read the policy {path}: {why}") from error
        try:
            content = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            # TOMLDecodeError, a number with more digits than Python reads; brackets in brackets.
            place = re.search(r"\(at (line \d{1,9}, column \d{1,9}|end of document)\)$", str(error))
            where = f" at {place[1].removesuffix(' of document')}" if place else ""
            raise RemoteError(
                f"the policy {path} is not valid TOML{where}: see the example in docs/attestation.md"
            ) from error
        fields = {}
        for key, value in content.items():
            reader = _READERS.get(key)
            if reader is None:
                raise RemoteError(f"the policy {path} has an unknown key {key!r}")
            try:
                fields[key] = reader(value)
            except (ValueError, TypeError) as error:
                raise RemoteError(f"the policy {path}: {key}: {error}") from error
        return cls(**fields)

    def replace(self, **changes: Any) -> Policy:
        """The same with other demands."""
        return dataclasses.replace(self, **changes)


def _hex(length: int) -> Callable[[Any], bytes]:
    def read(value: Any) -> bytes:
        if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]*", value) or len(value) != 2 * length:
            raise ValueError(f"must be {2 * length} hexadecimal digits")
        return bytes.fromhex(value)

    return read


def _chip_id(value: Any) -> bytes:
    """Turin's have 8 bytes, and zeros after them in reports."""
    if isinstance(value, str) and len(value) == 16:
        return _hex(8)(value).ljust(64, b"\0")
    return _hex(64)(value)


def _several(read: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def read_all(value: Any) -> tuple[Any, ...]:
        if value == []:
            # An empty list in a policy means that nothing is good; an empty tuple means anything.
            raise ValueError("must not be empty; without the key anything is accepted")
        return tuple(read(item) for item in (value if isinstance(value, list) else [value]))

    return read_all


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _demand(value: Any) -> Demand:
    if not isinstance(value, str) or value not in set(Demand):
        raise ValueError(f"must be one of {', '.join(Demand)}")
    return Demand(value)


def _number(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be a number from {low} to {high}")
        return value

    return read


def _version(value: Any) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", value) if isinstance(value, str) else None
    if found is None:
        raise ValueError('must be a version such as "1.55"')
    return int(found[1]), int(found[2])


def _tcb(value: Any) -> dict[str, int]:
    if not isinstance(value, dict) or not value.keys() <= set(_TCB_PARTS):
        raise ValueError(f"must be a table of {', '.join(_TCB_PARTS)}")
    return {name: _number(0, 255)(part) for name, part in value.items()}


def _platform(value: Any) -> PlatformInfo:
    if not isinstance(value, list) or not set(value) <= _PLATFORM_BITS.keys():
        raise ValueError(f"must be a list of {', '.join(_PLATFORM_BITS)}")
    bits = _NO_BITS
    for name in value:
        bits |= _PLATFORM_BITS[name]
    return bits


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return value


_READERS: dict[str, Callable[[Any], Any]] = {
    "measurement": _several(_hex(48)),
    "report_data": _hex(64),
    "host_data": _hex(32),
    "family_id": _hex(16),
    "image_id": _hex(16),
    "chip_ids": _several(_chip_id),
    "id_key_digests": _several(_hex(48)),
    "author_key_digests": _several(_hex(48)),
    "vmpl": _number(0, VMPLS - 1),
    "max_vmpl": _number(0, VMPLS - 1),
    "allow_host_requested": _boolean,
    "allow_debug": _boolean,
    "allow_migration_agent": _boolean,
    "allow_smt": _boolean,
    "require_single_socket": _boolean,
    "cxl_allow": _demand,
    "mem_aes_256_xts": _demand,
    "rapl_dis": _demand,
    "ciphertext_hiding": _demand,
    "page_swap_disable": _demand,
    "accept_guest_policy_bits": _several(_number(FIRST_UNKNOWN_POLICY_BIT, 63)),
    "minimum_abi": _version,
    "minimum_guest_svn": _number(0, 0xFFFFFFFF),
    "minimum_report_version": _number(REPORT_VERSIONS[0], REPORT_VERSIONS[-1]),
    "minimum_tcb": _tcb,
    "minimum_launch_tcb": _tcb,
    "minimum_launch_mitigations": _number(0, (1 << 63) - 1),
    "require_platform": _platform,
    "forbid_platform": _platform,
    "products": _several(_text),
    "allow_vlek": _boolean,
    "allow_provisional_firmware": _boolean,
    "allow_unknown_fields": _boolean,
}
assert _READERS.keys() == {item.name for item in dataclasses.fields(Policy)}
