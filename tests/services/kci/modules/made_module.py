# SPDX-License-Identifier: GPL-2.0-or-later
"""Small made-up modules, sound or hostile, and signatures for them."""

from __future__ import annotations

import datetime
import functools
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from veil.formats.kci import MemoryType, ModuleMemory
from veil.services.kci.modules import Exports
from veil.services.kci.modules.signature import MARKER

__all__ = [
    "KERNEL", "MEMORY", "MODULE_ADDRESS", "PERCPU", "Authority", "MadeModule", "MadeSection", "append_signature",
    "authority", "sign",
]  # fmt: skip

PROGBITS, SYMTAB, STRTAB, RELA, NOBITS, REL = 1, 2, 3, 4, 8, 9
W, A, X = 1, 2, 4

MODULE_ADDRESS = 0xFFFFFFFFC0200000
PERCPU = 0x39000
MEMORY: dict[MemoryType, ModuleMemory] = {
    kind: ModuleMemory(MODULE_ADDRESS + 0x10000 * kind, 0x1000)
    for kind in MemoryType
    if kind not in (MemoryType.RO_AFTER_INIT, MemoryType.INIT_RODATA)
}
KERNEL = Exports({"printk": 0xFFFFFFFF81111110, "counter": 0x1A040}, {"gpl_function": 0xFFFFFFFF81222220})


@dataclass(frozen=True)
class MadeSection:
    """A section; what is None is filled in as a linker would."""

    name: str
    data: bytes = b""
    kind: int = PROGBITS
    flags: int = A
    alignment: int = 8
    size: int | None = None
    offset: int | None = None
    link: int = 0
    info: int = 0
    relocations: tuple[tuple[int, int, int | str, int], ...] = ()
    """offset, type, symbol (by number or name), addend"""


def _default() -> tuple[MadeSection, ...]:
    return (
        MadeSection(".text", b"\xe8\0\0\0\0\x48\xc7\xc0\0\0\0\0\xc3" + bytes(3), flags=A | X, alignment=16,
                    relocations=((1, 4, "printk", -4), (8, 11, "table", 4))),
        MadeSection(".init.text", b"\x90\xc3", flags=A | X),
        MadeSection(".rodata", bytes(16), relocations=((0, 1, "function", 0), (8, 24, "table", 0))),
        MadeSection(".modinfo", b"name=made\0license=GPL\0vermagic=6.12 SMP\0version=1.0\0"),
        MadeSection(".data", bytes(8), flags=A | W),
        MadeSection(".gnu.linkonce.this_module", bytes(64), flags=A | W, alignment=64),
        MadeSection(".bss", kind=NOBITS, flags=A | W, size=32),
    )  # fmt: skip


@dataclass(frozen=True)
class MadeModule:
    """A module: `build()` gives the ELF file. Symbols: name, section (by number or name), value, info, size if any."""

    sections: tuple[MadeSection, ...] = field(default_factory=_default)
    symbols: tuple[tuple[str, int | str, int, int] | tuple[str, int | str, int, int, int], ...] = (
        ("printk", 0, 0, 0x10), ("table", ".rodata", 0, 0), ("function", ".text", 0, 0x12),
    )  # fmt: skip
    header: tuple[tuple[int, bytes], ...] = ()
    """Patches of the ELF header: offset, bytes."""

    def with_section(self, name: str, /, **changes: object) -> MadeModule:
        """One changed; or added, if there is none of that name."""
        if all(section.name != name for section in self.sections):
            return replace(self, sections=(*self.sections, MadeSection(name, **changes)))  # type: ignore[arg-type]
        changed = (replace(item, **changes) if item.name == name else item for item in self.sections)  # type: ignore[arg-type]
        return replace(self, sections=tuple(changed))

    def with_symbols(
        self, *symbols: tuple[str, int | str, int, int] | tuple[str, int | str, int, int, int]
    ) -> MadeModule:
        """More of them."""
        return replace(self, symbols=(*self.symbols, *symbols))

    def build(self) -> bytes:
        """The ELF file."""
        names = [section.name for section in self.sections]
        numbers = {name: number + 1 for number, name in enumerate(names)}
        symbol_numbers = {symbol[0]: number + 1 for number, symbol in enumerate(self.symbols)}
        strings, places = _strings([symbol[0] for symbol in self.symbols])
        table = bytes(24) + b"".join(
            struct.pack("<IBBHQQ", places[name], info, 0, numbers[section]
                        if isinstance(section, str) else section, value, *(size or [0]))
            for name, section, value, info, *size in self.symbols
        )  # fmt: skip
        symtab = len(self.sections) + 1
        made = [*self.sections, MadeSection(".symtab", table, SYMTAB, 0, link=symtab + 1),
                MadeSection(".strtab", strings, STRTAB, 0)]  # fmt: skip
        for section in self.sections:
            if section.relocations:
                rela = b"".join(
                    struct.pack("<QIIq", at, kind, symbol_numbers[symbol] if isinstance(symbol, str) else symbol, add)
                    for at, kind, symbol, add in section.relocations
                )
                made.append(MadeSection(".rela" + section.name, rela, RELA, 0, link=symtab, info=numbers[section.name]))
        shstrings, shplaces = _strings([section.name for section in made] + [".shstrtab"])
        made.append(MadeSection(".shstrtab", shstrings, STRTAB, 0))
        return self._put_together(made, shplaces)

    def _put_together(self, made: Sequence[MadeSection], places: dict[str, int]) -> bytes:
        body, headers = bytearray(64), bytearray(64)
        for section in made:
            body += bytes(-len(body) % 8)
            offset = len(body) if section.offset is None else section.offset
            size = len(section.data) if section.size is None else section.size
            headers += struct.pack("<IIQQQQIIQQ", places[section.name], section.kind, section.flags, 0, offset, size,
                                   section.link, section.info, section.alignment, 0)  # fmt: skip
            body += section.data
        body += bytes(-len(body) % 8)
        struct.pack_into("<16sHHIQQQIHHHHHH", body, 0, b"\x7fELF\x02\x01\x01", 1, 62, 1, 0, 0, len(body), 0, 64, 0, 0,
                         64, len(made) + 1, len(made))  # fmt: skip
        file = body + headers
        for at, data in self.header:
            file[at : at + len(data)] = data
        return bytes(file)


def _strings(names: Sequence[str]) -> tuple[bytes, dict[str, int]]:
    table, places = b"\0", {}
    for name in dict.fromkeys(names):
        places[name] = len(table)
        table += name.encode("latin-1") + b"\0"
    return table, places


@dataclass(frozen=True)
class Authority:
    """A key that signs modules, with its certificate."""

    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.DER)


@functools.cache
def authority(name: str = "builder", kind: str = "P-384", serial: int = 7) -> Authority:
    """The same one each time it is asked for; those with a key of a curve in each process too."""
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    if kind.isdigit():
        key = rsa.generate_private_key(65537, int(kind))
    else:
        seed = hashlib.sha256(f"{name} {kind} {serial}".encode()).digest()
        key = ec.derive_private_key(int.from_bytes(seed), ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    day = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), serial, day, day.replace(year=2021))
    return Authority(key, builder.sign(key, hashes.SHA256(), ecdsa_deterministic=None if kind.isdigit() else True))


def sign(
    body: bytes, *signers: Authority, algorithm: hashes.SHA256 | hashes.SHA384 | hashes.SHA512 | None = None,
    options: Sequence[pkcs7.PKCS7Options] = (
        pkcs7.PKCS7Options.DetachedSignature, pkcs7.PKCS7Options.Binary, pkcs7.PKCS7Options.NoAttributes,
        pkcs7.PKCS7Options.NoCerts,
    ),
) -> bytes:  # fmt: skip
    """A PKCS#7 message over `body`, as scripts/sign-file makes it unless `options` say otherwise."""
    builder = pkcs7.PKCS7SignatureBuilder().set_data(body)
    for signer in signers or (authority(),):
        builder = builder.add_signer(signer.certificate, signer.key, algorithm or hashes.SHA256())
    return builder.sign(Encoding.DER, options)


def append_signature(body: bytes, message: bytes, *, head: bytes = bytes((0, 0, 2, 0, 0, 0, 0, 0))) -> bytes:
    """A module's file of body and PKCS#7 message; `head` is `struct module_signature` up to the length."""
    return body + message + head + len(message).to_bytes(4, "big") + MARKER
