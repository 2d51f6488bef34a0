# SPDX-License-Identifier: GPL-2.0-or-later
"""An enclave's image: a reproducible ustar archive of `layout`, `content`, `manifest.toml` and the trusted files.

Only the layout is measured, and it covers the content. Manifest and trusted files are in the content too, or their
hashes are: beside it they are there for readers and for the starter, and must be the same.
"""

from __future__ import annotations

import hashlib
import io
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from veil.formats.enclaves import Layout, RecordKind
from veil.formats.errors import FormatError
from veil.formats.page_sizes import PAGE_SIZE
from veil.guest.enclaves.config import CONFIG_PLACE, Config, TrustedFile
from veil.guest.enclaves.manifest import Manifest
from veil.guest.enclaves.rules import Rules, brk_end
from veil.guest.errors import GuestImageError

__all__ = ["EnclaveImage"]

_BLOCK = 512
_LAYOUT, _CONTENT, _MANIFEST, _FILES = "layout", "content", "manifest.toml", "files"


@dataclass(frozen=True)
class EnclaveImage:
    """What is in an X.enclave file."""

    layout: Layout
    content: bytes
    """Pages of the CONTENT records, one after the other."""
    manifest: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Trusted files by path, which the starter puts into the guest if they are not there."""

    @property
    def measurement(self) -> bytes:
        """48 bytes."""
        return self.layout.measurement

    def pack(self) -> bytes:
        """The archive; the same image gives the same bytes."""
        stream = io.BytesIO()
        members = {
            _LAYOUT: self.layout.pack(),
            _CONTENT: self.content,
            _MANIFEST: self.manifest.encode(),
            **{f"{_FILES}{path}": data for path, data in sorted(self.files.items())},
        }
        try:
            with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
                for name, data in members.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    member.mode = 0o755 if data[:4] == b"\x7fELF" else 0o644
                    archive.addfile(member, io.BytesIO(data))
        except ValueError as error:
            path = name.removeprefix(_FILES)
            raise GuestImageError(
                f"an enclave's image cannot hold the file {path!r:.100}: its path is too long "
                "(100 letters, and 155 of folders before them)"
            ) from error
        return stream.getvalue()

    @classmethod
    def parse(cls, data: bytes, name: str) -> EnclaveImage:
        """Raises GuestImageError, with `name`, for what is no image or whose content is not as the layout says.

        There is one archive for an image: any other, as with links or with two entries of one name, is refused, for
        somebody else could find another file in it.
        """
        try:
            members = dict(_members(data))
            missing = [item for item in (_LAYOUT, _CONTENT, _MANIFEST) if item not in members]
            if missing:
                raise FormatError(f"it has no {missing[0]}")
            layout = Layout.parse(members[_LAYOUT])
            content, manifest = members[_CONTENT], members[_MANIFEST].decode()
        except (FormatError, UnicodeDecodeError) as error:
            raise GuestImageError(f"{name}: not an enclave's image: {error}") from error
        image = cls(
            layout,
            content,
            manifest,
            {path.removeprefix(_FILES): file for path, file in members.items() if path.startswith(f"{_FILES}/")},
        )
        image.check(name)
        if image.pack() != data:
            raise GuestImageError(f"{name}: its archive is not as `veil enclave build` writes it")
        return image

    def check(self, name: str) -> None:
        """Raise GuestImageError unless the content has the layout's digests, and all else is as the content says."""
        at = 0
        config = bytearray()
        for record in self.layout.records:
            if record.kind is not RecordKind.CONTENT:
                continue
            pages = self.content[at : at + record.pages * PAGE_SIZE]
            if hashlib.sha384(pages).digest() != record.digest:
                raise GuestImageError(f"{name}: the content at {record.va:#x} is not what the layout says")
            if record.va == CONFIG_PLACE + len(config):
                config += pages
            at += len(pages)
        if at != len(self.content):
            raise GuestImageError(f"{name}: more content than the layout says")
        try:
            self._check_config(Config.parse(bytes(config)))
        except (FormatError, GuestImageError) as error:
            raise GuestImageError(f"{name}: {error}") from error

    def _check_config(self, config: Config) -> None:
        """What stands beside the measured configuration is what it says, and it is what its manifest gives."""
        # By it people decide which secrets it gets: nobody may have changed it since it was built.
        if config.manifest != self.manifest:
            raise FormatError("its manifest is not the one that is measured")
        for path in sorted(self.files.keys() | config.files.keys()):
            if path not in config.files:
                raise FormatError(f"the file {path!r:.200} is no trusted file of what is measured")
            if path not in self.files or TrustedFile.of(self.files[path]) != config.files[path]:
                raise FormatError(f"the trusted file {path!r:.200} is not the one that is measured")
        manifest = Manifest.parse(config.manifest, "its manifest")
        rules = Rules.of(manifest)
        difference = config.rules.difference(rules)
        if difference is not None:
            raise FormatError(f"its rules are not those of its manifest: {difference}")
        layout = self.layout
        if (layout.slots, layout.pool_pages) != (rules.slots, rules.pool_pages):
            raise FormatError("its layout has other threads or another memory than its manifest")
        if config.brk_end != brk_end(config.brk_start, manifest):
            raise FormatError("its break may go elsewhere than its manifest says")
        for path in manifest.trusted:
            if not (any(file.startswith(path) for file in self.files) if path.endswith("/") else path in self.files):
                raise FormatError(f"its manifest says that it trusts {path!r:.200}, which it does not have")


def _members(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents of an archive of ordinary files (POSIX.1-1988, ustar). Raises FormatError."""
    at, seen = 0, set[str]()
    if not data[:_BLOCK].strip(b"\0"):
        raise FormatError("it is empty")
    while any(header := data[at : at + _BLOCK]):
        if len(header) < _BLOCK or header[257:263] != b"ustar\0":
            raise FormatError(f"there is no file's header at byte {at}")
        name, kind = _name(header), header[156:157]
        if kind != tarfile.REGTYPE:
            raise FormatError(f"{name!r:.300} is no ordinary file: a link, a folder, a device")
        size = header[124:135]
        if not re.fullmatch(rb"[0-7]{11}", size) or int(size, 8) > len(data) - at - _BLOCK:
            raise FormatError(f"{name!r:.300} is longer than the image")
        if name not in (_LAYOUT, _CONTENT, _MANIFEST) and not _is_file_path(name):
            raise FormatError(f"{name!r:.300} is not a file that an image has")
        if name in seen:
            raise FormatError(f"{name!r:.300} is there twice")
        seen.add(name)
        at += _BLOCK
        yield name, data[at : at + int(size, 8)]
        at += (int(size, 8) + _BLOCK - 1) // _BLOCK * _BLOCK


def _name(header: bytes) -> str:
    name, prefix = (part.partition(b"\0")[0].decode() for part in (header[:100], header[345:500]))
    return f"{prefix}/{name}" if prefix else name


def _is_file_path(name: str) -> bool:
    """Of a trusted file: none that leads elsewhere."""
    path = name.removeprefix(_FILES)
    return name != path and path.startswith("/") and posixpath.normpath(path) == path and path != "/"
