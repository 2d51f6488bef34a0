# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetch and unpack Debian packages as an ordinary user.

`apt-get download` needs no privilege, but package lists do: where the system's are missing or outdated, lists of our
own are kept in the cache. Nothing is installed. apt checks each download against the signed lists.
"""

import glob
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from veil.cache import Cache, cache_error
from veil.disk import refuse_full_disk, tool_environment
from veil.guest.errors import GuestImageError
from veil.private_files import UMASK, make_folder, tighten, write_private

__all__ = ["LIBRARY_FOLDERS", "Apt"]

#: where the libraries of a package are
LIBRARY_FOLDERS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")

_URI_LINE = re.compile(r"^'[^']*' (?P<file>\S+_(?P<version>[^_\s]+)_[a-z0-9]+\.deb) \d+", re.MULTILINE)


_SOURCES = "sources.list"
_WITHOUT_SECURITY = ("sid", "unstable", "experimental")
#: The package debian-archive-keyring has it: the keys of every suite.
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class Apt:
    """The configured apt, asked first with the system's package lists, then with lists of our own.

    `suite` ("sid", "trixie-backports"): that suite of the configured mirror, with what it builds upon, by lists of our
    own alone.
    """

    def __init__(self, cache: Cache, *, offline: bool = False, suite: str | None = None) -> None:
        self._cache = cache
        self._offline = offline
        self._suite = suite
        self._own_lists = False

    def names(self, pattern: str, wanted: re.Pattern[str]) -> list[str]:
        """The packages whose names match the regular expression `pattern`.

        Lists in which none matches `wanted` whole may be older than the package: they are fetched again, once.
        """
        found = self._search(pattern)
        if not any(map(wanted.fullmatch, found)) and not self._own_lists:
            self._update()
            found = self._search(pattern)
        return found

    def dependencies(self, package: str) -> list[str]:
        """The package and what it needs, directly or not; the nearest first."""
        options = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
        for _ in range(2):
            done = self._run("apt-cache", "depends", "--recurse", *options, package)
            names = [line for line in done.stdout.splitlines() if line and line[0] not in " <|"]
            if names or self._own_lists:
                break
            self._update()
        if not names:
            raise GuestImageError(f"apt knows no package {package} (is this Debian, with its main archive configured?)")
        return names

    def archive_name(self, package: str) -> str:
        """The file name of the package's candidate, which holds its version."""
        for attempt in range(2):
            # Where no file lies that it would take for fetched already.
            done = self._run("apt-get", "download", "--print-uris", package, cwd=self._place)
            match = _URI_LINE.search(done.stdout)
            if done.returncode == 0 and match:
                return match["file"].replace("%3a", "_")
            if attempt == 0 and not self._own_lists:
                self._update()
            else:
                break
        raise GuestImageError(f"apt offers no package {package} (is this Debian, with its main archive configured?)")

    def download(self, packages: Sequence[str], directory: Path) -> list[Path]:
        """The packages' .deb files in the same order, fetched into the empty folder `directory` with one call of apt.

        Raises GuestImageError.
        """
        names = ", ".join(packages)
        for attempt in range(2):
            done = self._run("apt-get", "download", "-q", *packages, cwd=directory)
            found = [next(directory.glob(f"{glob.escape(package)}_*.deb"), None) for package in packages]
            archives = [archive for archive in found if archive is not None]
            if done.returncode == 0 and len(archives) == len(packages):
                return archives
            self._refuse_full_disk(done, directory, names)
            # Lists older than the archive's latest point release name files that are gone from it.
            if attempt == 0 and not self._own_lists:
                self._update()
            else:
                break
        raise GuestImageError(f"cannot download {names}: {_reason(done)}")

    def unpack_archive(self, archive: Path, directory: Path) -> None:
        """The files of a .deb file, into `directory`. Raises GuestImageError."""
        done = self._run("dpkg-deb", "-x", str(archive), str(directory))
        if done.returncode:
            self._refuse_full_disk(done, directory, archive.name)
            raise GuestImageError(f"cannot unpack {archive.name}: {_reason(done)}")

    def unpack(self, package: str, directory: Path) -> None:
        """Fetch the package and unpack its files into `directory`."""
        self.unpack_all([package], directory)

    def unpack_all(self, packages: Sequence[str], directory: Path) -> None:
        """The same for several, with one call of apt."""
        fetched = directory / ".fetched"
        make_folder(fetched)
        for archive in self.download(packages, fetched):
            self.unpack_archive(archive, directory)
            archive.unlink()
        shutil.rmtree(fetched)

    def _search(self, pattern: str) -> list[str]:
        done = self._run("apt-cache", "--names-only", "search", pattern)
        return [line.split(" ")[0] for line in done.stdout.splitlines() if line]

    def _update(self) -> None:
        if self._offline:
            raise GuestImageError("the package lists are missing or outdated, and this run is offline")
        self._own_lists = True
        place = self._place
        for name in ("lists/partial", "cache/archives/partial", "etc"):
            make_folder(place / name)
        if self._suite is not None:
            write_private(place / _SOURCES, self._sources(self._suite))
        done = self._run("apt-get", "update", "-q")
        if not any((place / "lists").glob("*_Packages*")):
            self._refuse_full_disk(done, place, "Debian's package lists")
            raise GuestImageError(f"cannot fetch Debian's package lists: {_reason(done)}")

    def _sources(self, suite: str) -> str:
        """The lines that name a suite of the mirror from which this computer has its Debian, and what belongs to it."""
        done = Apt(self._cache)._run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
        mirrors = {
            name: next((uri for uri in done.stdout.split() if re.search(rf"/{name}/?$", uri)), None)
            for name in ("debian", "debian-security")
        }
        if mirrors["debian"] is None:
            raise GuestImageError(f"apt has no mirror of Debian configured, so there is no {suite} to fetch from")
        release = suite.partition("-")[0]
        wanted = [("debian", release)] + ([("debian", suite)] if suite != release else [])
        if release not in _WITHOUT_SECURITY:
            wanted.append(("debian-security", f"{release}-security"))
        signed = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
        return "".join(f"deb {signed}{mirrors[name]} {part} main\n" for name, part in wanted if mirrors[name])

    @property
    def _place(self) -> Path:
        """Where lists of our own are."""
        return self._cache.directory("apt" if self._suite is None else f"apt-{self._suite}")

    def _options(self) -> list[str]:
        # No sandbox user: the cache belongs to the user who runs us. One retry: mirrors hiccup.
        options = ["-o", "APT::Sandbox::User=", "-o", "Acquire::Retries=2", "-o", "Acquire::Languages=none"]
        place, own = self._place, self._own_lists or self._suite is not None
        # What apt makes of the lists takes it seconds. Where it would keep it ordinary users cannot write, and in many
        # containers it is told not to.
        made = place / ("own.pkgcache" if own else "system.pkgcache")
        options += ["-o", f"Dir::Cache::pkgcache={made}", "-o", "Dir::Cache::srcpkgcache="]
        if self._suite is not None:
            options += ["-o", f"Dir::Etc::SourceList={place / _SOURCES}", "-o", "Dir::Etc::SourceParts=/dev/null"]
        if own:
            options += ["-o", f"Dir::State={place}", "-o", f"Dir::State::lists={place}/lists"]
            # What is installed here is not there: a candidate of another suite may be older.
            status = "/var/lib/dpkg/status" if self._suite is None else "/dev/null"
            options += ["-o", f"Dir::State::status={status}", "-o", f"Dir::Cache={place}/cache"]
        return options

    def _run(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        tool, *arguments = command
        options = self._options() if tool.startswith("apt") else []
        environment = tool_environment(cwd, {"DEBIAN_FRONTEND": "noninteractive"})
        try:
            done = subprocess.run(
                [tool, *options, *arguments], cwd=cwd, env=environment, text=True, errors="replace",
                stdin=subprocess.DEVNULL, capture_output=True, check=False, umask=UMASK,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise GuestImageError(f"{tool} is not there: Debian packages can be fetched on Debian only") from error
        if options:
            tighten(self._place)  # apt gives its files modes, whatever the umask is
        return done

    def _refuse_full_disk(self, done: subprocess.CompletedProcess[str], place: Path, package: str) -> None:
        try:
            refuse_full_disk(done.stderr, place)
        except OSError as error:
            raise cache_error(error, self._cache.root, package) from error


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The line of apt's or dpkg's output that tells most."""
    lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("E:", "dpkg-deb: error"))] or lines[-1:]
    text = telling[0].removeprefix("E:").strip() if telling else f"exit status {done.returncode}"
    if any(word in "\n".join(lines) for word in ("resolve", "connect", "Network is unreachable", "timed out")):
        return f"no network? {text}"
    return text
