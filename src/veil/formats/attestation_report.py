# SPDX-License-Identifier: GPL-2.0-or-later
"""ATTESTATION_REPORT (SNP firmware ABI, 56860, table "ATTESTATION_REPORT Structure"), versions 2 to 5.

The makers and the readers of reports share this layout; what a report is worth is `veil.remote`'s business.
"""

from __future__ import annotations

import ctypes
import enum

from veil.formats.domains import VMPLS
from veil.formats.errors import FormatError
from veil.formats.offsets import check_offsets

__all__ = [
    "FIRST_UNKNOWN_POLICY_BIT",
    "HOST_REQUESTED_VMPL",
    "REPORT_BYTES",
    "REPORT_VERSIONS",
    "SIGNED_BYTES",
    "AttestationReport",
    "GuestPolicy",
    "PlatformInfo",
    "Signature",
    "SigningKey",
    "TcbLayout",
    "TcbVersion",
    "tcb_layout",
]

_U8, _U32, _U64 = ctypes.c_uint8, ctypes.c_uint32, ctypes.c_uint64

REPORT_BYTES = 0x4A0
#: the signature is over the bytes before it
SIGNED_BYTES = 0x2A0
#: Version 4 has the fields of version 3.
REPORT_VERSIONS = (2, 3, 4, 5)
_FIRST_WITH_CPUID = 3
_FIRST_WITH_MITIGATIONS = 5

ECDSA_P384_SHA384 = 1
#: VMPL of a report that the host asked for (SNP_HV_REPORT_REQ)
HOST_REQUESTED_VMPL = 0xFFFFFFFF


class GuestPolicy(enum.IntFlag):
    """The guest policy's bits above the firmware's ABI version (bits 15:0, major 15:8 and minor 7:0)."""

    SMT = 1 << 16
    RESERVED_ONE = 1 << 17
    MIGRATE_MA = 1 << 18
    DEBUG = 1 << 19
    SINGLE_SOCKET = 1 << 20
    CXL_ALLOW = 1 << 21
    MEM_AES_256_XTS = 1 << 22
    RAPL_DIS = 1 << 23
    CIPHERTEXT_HIDING = 1 << 24
    PAGE_SWAP_DISABLE = 1 << 25


#: bits from here on are in no published version of the guest policy
FIRST_UNKNOWN_POLICY_BIT = 26


class PlatformInfo(enum.IntFlag):
    """PLATFORM_INFO."""

    SMT_EN = 1 << 0
    TSME_EN = 1 << 1
    ECC_EN = 1 << 2
    RAPL_DIS = 1 << 3
    CIPHERTEXT_HIDING_EN = 1 << 4
    ALIAS_CHECK_COMPLETE = 1 << 5
    #: Turin
    IOMMU_WRITE_SAFE = 1 << 6
    TIO_EN = 1 << 7


class SigningKey(enum.IntEnum):
    """SIGNING_KEY, bits 4:2 of the report's flags."""

    VCEK = 0
    VLEK = 1
    NONE = 7


class TcbLayout(enum.Enum):
    """What the eight bytes of a TCB_VERSION are, by generation of processors; None is reserved."""

    MILAN_GENOA = ("boot_loader", "tee", None, None, None, None, "snp", "microcode")
    TURIN = ("fmc", "boot_loader", "tee", "snp", None, None, None, "microcode")


class TcbVersion:
    """A TCB_VERSION: security version numbers of the firmware's parts, each 0 to 255."""

    def __init__(self, value: int, layout: TcbLayout = TcbLayout.MILAN_GENOA) -> None:
        self.value = value
        self.layout = layout
        parts = value.to_bytes(8, "little")
        self.parts = {name: part for name, part in zip(layout.value, parts, strict=True) if name is not None}
        self.reserved = {f"byte_{at}": parts[at] for at, name in enumerate(layout.value) if name is None}
        """The bytes that this generation has no part in, by place: zero, as far as is known."""

    @classmethod
    def of(cls, layout: TcbLayout = TcbLayout.MILAN_GENOA, **parts: int) -> TcbVersion:
        """From parts by name: boot_loader, tee, snp, microcode, and fmc for Turin."""
        unknown = parts.keys() - set(layout.value)
        if unknown:
            raise FormatError(f"a TCB version of {layout.name} has no part {', '.join(sorted(unknown))}")
        return cls(int.from_bytes(bytes(parts.get(name or "", 0) for name in layout.value), "little"), layout)

    def at_least(self, other: TcbVersion) -> bool:
        """Is no part older than the other's?"""
        return self.layout == other.layout and all(self.parts[name] >= part for name, part in other.parts.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TcbVersion) and (self.value, self.layout) == (other.value, other.layout)

    def __hash__(self) -> int:
        return hash((self.value, self.layout))

    def __str__(self) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {part}" for name, part in self.parts.items())

    def __repr__(self) -> str:
        return f"TcbVersion({self.value:#018x}: {self})"


def tcb_layout(family: int, model: int) -> TcbLayout:
    """By CPUID family and model as a report of version 3 or later has them. Turin is family 1Ah."""
    return TcbLayout.TURIN if family >= 0x1A else TcbLayout.MILAN_GENOA


class Signature(ctypes.LittleEndianStructure):
    """R and S, little-endian, zero extended."""

    _pack_ = 1
    _fields_ = [("r", _U8 * 72), ("s", _U8 * 72), ("reserved_90", _U8 * 368)]

    r: ctypes.Array[ctypes.c_uint8]
    s: ctypes.Array[ctypes.c_uint8]
    reserved_90: ctypes.Array[ctypes.c_uint8]


class AttestationReport(ctypes.LittleEndianStructure):
    """0x4A0 bytes. Fields that a version lacks are zero in it; `flags`: AUTHOR_KEY_EN 0, MASK_CHIP_KEY 1, SIGNING_KEY
    4:2.
    """

    _pack_ = 1
    _fields_ = [
        ("version", _U32),
        ("guest_svn", _U32),
        ("policy", _U64),
        ("_family_id", _U8 * 16),
        ("_image_id", _U8 * 16),
        ("vmpl", _U32),
        ("signature_algorithm", _U32),
        ("current_tcb", _U64),
        ("platform_info", _U64),
        ("flags", _U32),
        ("reserved_04c", _U32),
        ("_report_data", _U8 * 64),
        ("_measurement", _U8 * 48),
        ("_host_data", _U8 * 32),
        ("_id_key_digest", _U8 * 48),
        ("_author_key_digest", _U8 * 48),
        ("_report_id", _U8 * 32),
        ("_report_id_ma", _U8 * 32),
        ("reported_tcb", _U64),
        ("cpuid_family", _U8),
        ("cpuid_model", _U8),
        ("cpuid_stepping", _U8),
        ("_reserved_18b", _U8 * 21),
        ("_chip_id", _U8 * 64),
        ("committed_tcb", _U64),
        ("current_build", _U8),
        ("current_minor", _U8),
        ("current_major", _U8),
        ("reserved_1eb", _U8),
        ("committed_build", _U8),
        ("committed_minor", _U8),
        ("committed_major", _U8),
        ("reserved_1ef", _U8),
        ("launch_tcb", _U64),
        ("launch_mitigation_vector", _U64),
        ("current_mitigation_vector", _U64),
        ("_reserved_208", _U8 * 152),
        ("signature", Signature),
    ]

    version: int
    guest_svn: int
    policy: int
    vmpl: int
    signature_algorithm: int
    current_tcb: int
    platform_info: int
    flags: int
    reserved_04c: int
    reported_tcb: int
    cpuid_family: int
    cpuid_model: int
    cpuid_stepping: int
    committed_tcb: int
    current_build: int
    current_minor: int
    current_major: int
    reserved_1eb: int
    committed_build: int
    committed_minor: int
    committed_major: int
    reserved_1ef: int
    launch_tcb: int
    launch_mitigation_vector: int
    current_mitigation_vector: int
    signature: Signature

    @classmethod
    def parse(cls, data: bytes) -> AttestationReport:
        """A report from its bytes. Raises FormatError for what cannot be one; says nothing about its signature."""
        if len(data) != REPORT_BYTES:
            raise FormatError(f"an attestation report has {REPORT_BYTES} bytes, not {len(data)}")
        report = cls.from_buffer_copy(data)
        if report.version not in REPORT_VERSIONS:
            known = ", ".join(map(str, REPORT_VERSIONS))
            raise FormatError(
                f"attestation report of version {report.version}: known are {known}. "
                "Another version may have its fields at other places, so none can be read"
            )
        if report.signature_algorithm != ECDSA_P384_SHA384:
            raise FormatError(f"the report's signature algorithm {report.signature_algorithm} is not ECDSA P-384")
        if report.vmpl >= VMPLS and report.vmpl != HOST_REQUESTED_VMPL:
            raise FormatError(f"the report's VMPL is {report.vmpl:#x}, and there are only 0 to 3")
        if any(report.signature.reserved_90):
            raise FormatError(
                "the report's signature is followed by bytes that must be zero; nobody signed what is there now"
            )
        return report

    def _bytes(self, name: str) -> bytes:
        return bytes(getattr(self, name))

    @property
    def family_id(self) -> bytes:
        """FAMILY_ID of the ID block, 16 bytes."""
        return self._bytes("_family_id")

    @property
    def image_id(self) -> bytes:
        """IMAGE_ID of the ID block, 16 bytes."""
        return self._bytes("_image_id")

    @property
    def report_data(self) -> bytes:
        """What the guest put in, 64 bytes."""
        return self._bytes("_report_data")

    @property
    def measurement(self) -> bytes:
        """The launch digest, 48 bytes."""
        return self._bytes("_measurement")

    @property
    def host_data(self) -> bytes:
        """What the host put in at launch, 32 bytes."""
        return self._bytes("_host_data")

    @property
    def id_key_digest(self) -> bytes:
        """SHA-384 of the key that signed the ID block, or zeros."""
        return self._bytes("_id_key_digest")

    @property
    def author_key_digest(self) -> bytes:
        """SHA-384 of the key that certified the ID key, or zeros."""
        return self._bytes("_author_key_digest")

    @property
    def report_id(self) -> bytes:
        """The guest's, 32 bytes: the same in all reports of one guest."""
        return self._bytes("_report_id")

    @property
    def report_id_ma(self) -> bytes:
        """The migration agent's report ID, ones if there is none."""
        return self._bytes("_report_id_ma")

    @property
    def chip_id(self) -> bytes:
        """The chip's, 64 bytes; zeros if masked."""
        return self._bytes("_chip_id")

    def set_bytes(self, **fields: bytes) -> None:
        """Fill byte fields by name, each with exactly its length; for the makers of reports."""
        for name, value in fields.items():
            target = getattr(self, f"_{name}")
            if len(value) != len(target):
                raise FormatError(f"{name} has {len(target)} bytes, not {len(value)}")
            target[:] = value

    @property
    def author_key_enabled(self) -> bool:
        """AUTHOR_KEY_EN."""
        return bool(self.flags & 1)

    @property
    def chip_key_masked(self) -> bool:
        """MASK_CHIP_KEY: the report is not signed."""
        return bool(self.flags & 2)

    @property
    def signing_key(self) -> SigningKey | None:
        """Which key signed it; None for a reserved value. Reports of version 2 have it too."""
        value = self.flags >> 2 & 7
        return SigningKey(value) if value in set(SigningKey) else None

    @property
    def has_cpuid(self) -> bool:
        """Does this version carry family, model and stepping?"""
        return self.version >= _FIRST_WITH_CPUID

    @property
    def has_mitigations(self) -> bool:
        """Does this version carry mitigation vectors?"""
        return self.version >= _FIRST_WITH_MITIGATIONS

    @property
    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        return bytes(self)[:SIGNED_BYTES]

    @property
    def signature_rs(self) -> tuple[int, int]:
        """R and S as numbers."""
        return int.from_bytes(bytes(self.signature.r), "little"), int.from_bytes(bytes(self.signature.s), "little")

    def sign(self, r: int, s: int) -> None:
        """Put a signature in."""
        self.signature.r = (_U8 * 72)(*r.to_bytes(72, "little"))
        self.signature.s = (_U8 * 72)(*s.to_bytes(72, "little"))


check_offsets(
    AttestationReport,
    REPORT_BYTES,
    {
        "policy": 0x08, "_family_id": 0x10, "_image_id": 0x20, "vmpl": 0x30, "current_tcb": 0x38,
        "platform_info": 0x40, "flags": 0x48, "_report_data": 0x50, "_measurement": 0x90, "_host_data": 0xC0,
        "_id_key_digest": 0xE0, "_author_key_digest": 0x110, "_report_id": 0x140, "_report_id_ma": 0x160,
        "reported_tcb": 0x180, "cpuid_family": 0x188, "_chip_id": 0x1A0, "committed_tcb": 0x1E0,
        "current_build": 0x1E8, "committed_build": 0x1EC, "launch_tcb": 0x1F0, "launch_mitigation_vector": 0x1F8,
        "current_mitigation_vector": 0x200, "signature": 0x2A0,
    },
)  # fmt: skip
