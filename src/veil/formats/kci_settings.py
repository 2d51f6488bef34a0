# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilS-KCI's settings, which are its policy: defaults and bounds, for the launch, the service and the command line
alike.

In text a list's items have colons between them: `hashes=AB..:CD..`. Certificates are base64 of the URL's alphabet.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from veil.formats.errors import FormatError
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.service_settings import ServiceSettings, ShortOption, setting
from veil.formats.sizes import parse_size

__all__ = ["BUILD_KEYS", "HALT", "NO_KEYS", "OFF", "ON", "KciSettings", "certificate_text"]

OFF, ON, HALT = "off", "on", "halt"
BUILD_KEYS, NO_KEYS = "build", "none"

_MIN_FILE, _MAX_FILE = 1 << 20, 256 << 20
_SHA256 = 32
_MAX_ITEMS = 64
#: A symbol of the kernel's, or MODULE/SYMBOL.
_SYMBOL = re.compile(r"([A-Za-z0-9_]{1,55}/)?[A-Za-z_][A-Za-z0-9_.$]{0,254}")


def certificate_text(der: bytes) -> str:
    """An item of the setting `certificates`."""
    return base64.urlsafe_b64encode(der).decode()


def _items(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(":")))


@dataclass(frozen=True)
class KciSettings(ServiceSettings):
    """Which code the kernel may run, and what happens when something else is tried (docs/kci.md). Raises
    FormatError."""

    mode: str = setting(
        OFF,
        str,
        ShortOption(
            "--kci",
            "Kernel code integrity: with on, the kernel runs no supervisor code but its own and verified modules; what "
            "is refused stands in the protected log. With halt the first violation ends the kernel (a refused module "
            "does not count as one).",
            choices=(OFF, ON, HALT),
            variable="VEIL_KCI",
            everywhere=True,
        ),
    )
    """"off": no lock-down; "on": what is refused does not happen, and stands in the log; "halt": the
    first violation ends the kernel, too, and so does lock-down that is refused; a module that is refused does not."""
    keys: str = setting(
        BUILD_KEYS,
        str,
        ShortOption(
            "--kci-keys",
            "May the keys that are built into the kernel (Debian's, for Debian's modules) sign modules?",
            choices=(BUILD_KEYS, NO_KEYS),
            everywhere=True,
        ),
    )
    """"build": the certificates that are built into the measured kernel may sign modules; "none": they may not."""
    certificates: tuple[str, ...] = setting(
        (),
        _items,
        ShortOption(
            "--kci-certificate",
            "Another key that may: its X.509 certificate, in PEM or DER.",
            metavar="FILE",
            each=True,
            certificates=True,
            everywhere=True,
        ),
    )
    """Others that may: X.509, DER, in base64."""
    hashes: tuple[str, ...] = setting(
        (),
        _items,
        ShortOption(
            "--kci-hash",
            "SHA-256 of a module that needs no signature: of the file, not compressed (xz -dc x.ko.xz | sha256sum).",
            metavar="HEX",
            each=True,
            everywhere=True,
        ),
    )
    """SHA-256 of modules' files that need no signature, in hex: of the whole file, not compressed."""
    writable: tuple[str, ...] = setting(
        (),
        _items,
        ShortOption(
            "--kci-writable",
            "An exception: read-only data that the kernel may write, by its symbol; of a module's, MODULE/SYMBOL.",
            metavar="SYMBOL",
            each=True,
            everywhere=True,
        ),
    )
    """Exceptions: read-only data that the kernel may write. SYMBOL of the kernel's, MODULE/SYMBOL of a module's."""
    largest_module: int = setting(16 << 20, parse_size)
    """Bytes of the largest module's file, not compressed: so much memory the service has for its private copy."""

    def __post_init__(self) -> None:
        for name in ("certificates", "hashes", "writable"):
            object.__setattr__(self, name, _strings(name, getattr(self, name)))
        if self.mode not in (OFF, ON, HALT):
            raise FormatError(f"VeilS-KCI's setting 'mode' must be {OFF}, {ON} or {HALT}, not {self.mode!r}")
        if self.keys not in (BUILD_KEYS, NO_KEYS):
            raise FormatError(f"VeilS-KCI's setting 'keys' must be {BUILD_KEYS} or {NO_KEYS}, not {self.keys!r}")
        if type(self.largest_module) is not int or not _MIN_FILE <= self.largest_module <= _MAX_FILE:
            raise FormatError("the largest module's file has 1 MiB to 256 MiB")
        object.__setattr__(self, "largest_module", -(-self.largest_module // PAGE_SIZE) * PAGE_SIZE)
        # They are read once here, so that whoever writes a mistake learns of it at once.
        _ = self.allowed_hashes, self.allowed_certificates
        for symbol in self.writable:
            if not _SYMBOL.fullmatch(symbol):
                raise FormatError(f"{symbol!r:.100} is neither SYMBOL nor MODULE/SYMBOL")

    @property
    def allowed_hashes(self) -> frozenset[bytes]:
        """As bytes."""
        return frozenset(map(_hash, self.hashes))

    @property
    def allowed_certificates(self) -> tuple[bytes, ...]:
        """As DER; whether they are certificates is not looked at here."""
        return tuple(map(_certificate, self.certificates))

    def writable_of(self, module: str = "") -> list[str]:
        """Symbols of a module's that the kernel may write; by default the kernel's own."""
        found = (item.rpartition("/") for item in self.writable)
        return [symbol for owner, _, symbol in found if owner == module]

    @property
    def memory_size(self) -> int:
        """The private copy."""
        return 0 if self.mode == OFF else self.largest_module

    @property
    def ignored(self) -> str:
        """Which code may run, with lock-down off."""
        policy = self.keys != BUILD_KEYS or self.certificates or self.hashes or self.writable
        return (
            f"which code may run is only asked with --kci {ON} or --kci {HALT}" if self.mode == OFF and policy else ""
        )

    @property
    def needs_monitor(self) -> str:
        """For lock-down."""
        return "" if self.mode == OFF else f"kernel code integrity needs VeilMon: --kci {OFF}, or "

    @property
    def keeps_kernel(self) -> bool:
        """Its code is compared with the copy."""
        return self.mode != OFF


def _strings(name: str, value: object) -> tuple[str, ...]:
    """JSON has lists."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise FormatError(f"VeilS-KCI's setting {name!r} must be a list of texts")
    if len(value) > _MAX_ITEMS:
        raise FormatError(f"VeilS-KCI's setting {name!r} has {len(value)} items, and may have {_MAX_ITEMS}")
    return tuple(value)


def _hash(text: str) -> bytes:
    try:
        found = bytes.fromhex(text)
    except ValueError as error:
        raise FormatError(f"{text!r} is not a hash in hex") from error
    if len(found) != _SHA256:
        raise FormatError(f"{text!r} is not a SHA-256: it has {len(found)} bytes")
    return found


def _certificate(text: str) -> bytes:
    try:
        return base64.b64decode(text, altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise FormatError(f"a certificate is not base64 of the URL's alphabet: {text[:20]!r}...") from error
