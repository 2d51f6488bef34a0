# SPDX-License-Identifier: GPL-2.0-or-later
"""An enclave's manifest: what its program gets and may do. A TOML file; what it does not name is refused.

docs/enclaves.md has the keys in words. Each value is checked when the manifest is read, and a key that is not known is
an error, for a misspelt one would be a rule that is not there.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from veil.formats.enclave_pages import MOST_STRINGS
from veil.formats.enclaves import MAX_SLOTS
from veil.formats.errors import FormatError
from veil.formats.sizes import format_size, parse_size
from veil.guest.enclaves.calls import allowed_numbers
from veil.guest.errors import GuestImageError

__all__ = ["SIGNALS", "Manifest", "parse_toml", "secret_path"]

MIB = 1 << 20
_LEAST_MEMORY, _MOST_MEMORY = 1 * MIB, 4096 * MIB
_LEAST_STACK, _MOST_STACK = 64 << 10, 64 * MIB
#: Signals that a process outside may pass on; those of faults are the enclave's own.
SIGNALS = {
    "HUP": 1, "INT": 2, "QUIT": 3, "USR1": 10, "USR2": 12, "ALRM": 14, "TERM": 15, "CHLD": 17, "CONT": 18, "URG": 23,
    "WINCH": 28, "IO": 29,
}  # fmt: skip
_LONGEST_MANIFEST = 1 << 20
_LONGEST_PATH = 1000
_SECRETS = "/run/secrets"
#: what the runtime answers by itself, whatever a rule says
_OWN_FILES = ("/dev/random", "/dev/urandom")
_SECRET_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Manifest:
    """The defaults allow a program to compute, and to use what it was started with: streams, nothing else."""

    memory: int = 64 * MIB
    """Bytes that it can map while it runs, besides what its files hold."""
    stack: int = 1 * MIB
    """Bytes of the first thread's stack, part of `memory`."""
    threads: int = 8
    """The most at once, the first included."""
    end_on_unsupported: bool = False
    """A system call that is not supported or not allowed ends the enclave; else it is answered by ENOSYS."""
    arguments: tuple[str, ...] = ()
    """Fixed ones, the program's name first if they are not empty."""
    arguments_outside: bool = False
    """Whether arguments are taken from who starts it; they follow the fixed ones."""
    environment: Mapping[str, str] = field(default_factory=dict)
    environment_outside: tuple[str, ...] = ()
    """Names of variables that are taken from outside; "*": all."""
    directory: str = "/"
    trusted: tuple[str, ...] = ()
    """Files, or with "/" at the end folders, whose content is measured now."""
    read: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()
    sealed: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    """Names of what owners send to this enclave: the program finds each at `secret_path`."""
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    signals: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    """Paths of programs outside that it may start. They are not shielded."""

    def __post_init__(self) -> None:
        _check_range("memory", self.memory, _LEAST_MEMORY, _MOST_MEMORY)
        _check_range("stack", self.stack, _LEAST_STACK, _MOST_STACK)
        if not 1 <= self.threads <= MAX_SLOTS:
            raise GuestImageError(f"manifest: threads must be 1 to {MAX_SLOTS}, not {self.threads}")
        for key, words in _WORDS_OF.items():
            _check_texts(words, getattr(self, key))
        for key in _LISTS:
            _check_once(_WORDS_OF[key], getattr(self, key))
        for key in ("trusted", "read", "passed", "sealed"):
            for path in getattr(self, key):
                _check_path(_WORDS_OF[key], path)
        _check_path("directory", self.directory, may_be_tree=False)
        for path in self.programs:
            _check_path("programs", path, may_be_tree=False)
        for name in self.secrets:
            if not _SECRET_NAME.fullmatch(name):
                raise GuestImageError(
                    f"manifest: files.secrets: {name!r} is not a name of 1 to 64 letters, digits, '_', '.' and '-' "
                    "that begins with a letter, a digit or '_'"
                )
        for name in self.signals:
            if name not in SIGNALS:
                raise GuestImageError(f"manifest: signals: {name!r} is not one of {', '.join(SIGNALS)}")
        if self.stack > self.memory:
            raise GuestImageError(
                f"manifest: stack is part of memory: {format_size(self.stack)} is more than {format_size(self.memory)}"
            )
        self._check_paths()
        self._check_variables()
        self._check_fixed()
        both = sorted(set(self.allow) & set(self.deny))
        if both:
            raise GuestImageError(f"manifest: {both[0]!r} is in calls.allow and in calls.deny")
        allowed_numbers(self.allow, self.deny)
        # As it stands in the image, where it is read again: with backslashes and the like written out.
        if len(self.text()) > _LONGEST_MANIFEST:
            raise GuestImageError(
                f"manifest: written out it is more than the {_LONGEST_MANIFEST >> 20} MiB that it can have"
            )

    def _check_paths(self) -> None:
        """No rule is without effect: of two for the same path one would be."""
        found = {path: "files.trusted" for path in self.trusted if not path.endswith("/")}
        found |= dict.fromkeys(_OWN_FILES, "what the runtime answers itself")
        found |= {secret_path(name): "files.secrets" for name in self.secrets}
        for key in ("read", "passed", "sealed"):
            for path in getattr(self, key):
                place, words = path.rstrip("/") or "/", _WORDS_OF[key]
                if place in found:
                    raise GuestImageError(f"manifest: {place!r} is in {words} and in {found[place]}: which is it?")
                found[place] = words

    def _check_variables(self) -> None:
        for name in (*self.environment, *self.environment_outside):
            if not name or "=" in name:
                raise GuestImageError(f"manifest: environment: {name!r} is not the name of a variable")
        if "*" in self.environment_outside and len(self.environment_outside) > 1:
            raise GuestImageError('manifest: environment.outside: "*" is all variables: name no other')
        for name in self.environment:
            if name in self.environment_outside:
                raise GuestImageError(f"manifest: {name!r} is in environment.fixed and in environment.outside")

    def _check_fixed(self) -> None:
        """What is fixed must fit, else the program never starts."""
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        for words, texts in (("arguments.fixed", self.arguments), ("environment.fixed", variables)):
            if len(texts) > MOST_STRINGS:
                raise GuestImageError(f"manifest: {words} has {len(texts)} texts, and {MOST_STRINGS} at most fit")
        # As the runtime has it (start.c): half of the stack is the program's own. Linux leaves it three quarters.
        room = self.stack // 2
        needed = sum(len(text.encode()) + 1 + _POINTER for text in (*self.arguments, *variables))
        if needed > room:
            raise GuestImageError(
                f"manifest: arguments.fixed and environment.fixed take {needed} bytes of the stack: {room} at most fit"
            )

    @classmethod
    def parse(cls, text: str, name: str = "manifest") -> Manifest:
        """From TOML. Raises GuestImageError, with `name`."""
        return cls.of(parse_toml(text, name))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Manifest:
        """From tables as TOML has them. Raises GuestImageError."""
        found: dict[str, Any] = {}
        flat = {
            (key, inner): value
            for key, table in values.items()
            if isinstance(table, Mapping) and key in _TABLES
            for inner, value in table.items()
        } | {("", key): value for key, value in values.items() if key not in _TABLES}
        for key in _TABLES:
            if key in values and not isinstance(values[key], Mapping):
                raise GuestImageError(f"manifest: {key} must be a table: [{key}]")
        for (table, key), value in flat.items():
            words = f"{table}.{key}" if table else key
            if (table, key) not in _KEYS:
                raise GuestImageError(f"manifest: there is no key {words} (docs/enclaves.md lists them)")
            name, read = _KEYS[table, key]
            found[name] = read(words, value)
        return cls(**found)

    def text(self) -> str:
        """TOML that `parse` reads as this manifest, always the same for the same one."""
        lines = [
            f'memory = "{format_size(self.memory)}"',
            f'stack = "{format_size(self.stack)}"',
            f"threads = {self.threads}",
            f'unsupported = "{"end" if self.end_on_unsupported else "refuse"}"',
            f"directory = {_quoted(self.directory)}",
            f"signals = {_array(self.signals)}",
            f"programs = {_array(self.programs)}",
            "",
            "[arguments]",
            f"fixed = {_array(self.arguments)}",
            f"outside = {'true' if self.arguments_outside else 'false'}",
            "",
            "[environment]",
            f"outside = {_array(self.environment_outside)}",
            "fixed = { "
            + ", ".join(f"{_quoted(name)} = {_quoted(value)}" for name, value in sorted(self.environment.items()))
            + " }",
            "",
            "[files]",
            f"trusted = {_array(self.trusted)}",
            f"read = {_array(self.read)}",
            f"pass = {_array(self.passed)}",
            f"sealed = {_array(self.sealed)}",
            f"secrets = {_array(self.secrets)}",
            "",
            "[calls]",
            f"allow = {_array(self.allow)}",
            f"deny = {_array(self.deny)}",
        ]
        return "".join(f"{line}\n" for line in lines)


def parse_toml(text: str, name: str) -> dict[str, Any]:
    """Of a manifest, or a part of one. Raises GuestImageError, with `name`."""
    if len(text) > _LONGEST_MANIFEST:
        raise GuestImageError(f"{name}: more than the {_LONGEST_MANIFEST >> 20} MiB that a manifest can have")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise GuestImageError(f"{name}: arrays or tables in each other, too deep to be read") from error
    except ValueError as error:
        # Of TOML; or of a number with thousands of digits.
        raise GuestImageError(f"{name}: {error}") from error


def secret_path(name: str) -> str:
    """The file that the program reads a secret from."""
    return f"{_SECRETS}/{name}"


def _size(words: str, value: object) -> int:
    try:
        return parse_size(str(value)) if isinstance(value, str) else _number(words, value)
    except FormatError as error:
        raise GuestImageError(f"manifest: {words}: {error}") from error


def _number(words: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise GuestImageError(f"manifest: {words} must be a number")
    if abs(value) >> 63:
        raise GuestImageError(f"manifest: {words} is a number of more than 64 bits")
    return value


def _flag(words: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise GuestImageError(f"manifest: {words} must be true or false")
    return value


def _text(words: str, value: object) -> str:
    if not isinstance(value, str):
        raise GuestImageError(f"manifest: {words} must be a text")
    return value


def _texts(words: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise GuestImageError(f"manifest: {words} must be a list of texts")
    return tuple(value)


def _variables(words: str, value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise GuestImageError(f"manifest: {words} must be a table of texts")
    return dict(value)


def _unsupported(words: str, value: object) -> bool:
    if value not in ("refuse", "end"):
        raise GuestImageError(f'manifest: {words} must be "refuse" or "end"')
    return value == "end"


def _check_range(words: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise GuestImageError(
            f"manifest: {words} must be {format_size(least)} to {format_size(most)}, not {format_size(value)}"
        )


def _check_texts(words: str, value: object) -> None:
    """They can be written down, and end where C ends them."""
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else []
    if isinstance(value, Mapping):
        texts += value.values()
    for text in texts:
        if "\0" in text:
            raise GuestImageError(f"manifest: {words}: a text with a NUL character")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise GuestImageError(f"manifest: {words}: {text!r} is not UTF-8")


def _check_once(words: str, texts: tuple[str, ...]) -> None:
    seen: set[str] = set()
    for text in texts:
        if text in seen:
            raise GuestImageError(f"manifest: {words}: {text!r} is there twice")
        seen.add(text)


def _check_path(words: str, path: str, *, may_be_tree: bool = True) -> None:
    whole = path.rstrip("/") or "/"
    if not path.startswith("/") or posixpath.normpath(whole) != whole or path not in (whole, f"{whole}/", "/"):
        raise GuestImageError(
            f"manifest: {words}: {path!r} is not an absolute path without '.', '..' and double slashes"
        )
    if len(path) > _LONGEST_PATH:
        raise GuestImageError(f"manifest: {words}: a path has {_LONGEST_PATH} letters at most, not {len(path)}")
    if not may_be_tree and path.endswith("/") and path != "/":
        raise GuestImageError(f"manifest: {words}: {path!r}: no '/' at its end, which means all that is below it")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped) + '"'


def _array(texts: tuple[str, ...]) -> str:
    return "[" + ", ".join(map(_quoted, texts)) + "]"


_TABLES = ("arguments", "environment", "files", "calls")
_KEYS: dict[tuple[str, str], tuple[str, Callable[[str, object], object]]] = {
    ("", "memory"): ("memory", _size),
    ("", "stack"): ("stack", _size),
    ("", "threads"): ("threads", _number),
    ("", "unsupported"): ("end_on_unsupported", _unsupported),
    ("", "directory"): ("directory", _text),
    ("", "signals"): ("signals", _texts),
    ("", "programs"): ("programs", _texts),
    ("arguments", "fixed"): ("arguments", _texts),
    ("arguments", "outside"): ("arguments_outside", _flag),
    ("environment", "fixed"): ("environment", _variables),
    ("environment", "outside"): ("environment_outside", _texts),
    ("files", "trusted"): ("trusted", _texts),
    ("files", "read"): ("read", _texts),
    ("files", "pass"): ("passed", _texts),
    ("files", "sealed"): ("sealed", _texts),
    ("files", "secrets"): ("secrets", _texts),
    ("calls", "allow"): ("allow", _texts),
    ("calls", "deny"): ("deny", _texts),
}
_WORDS_OF = {field: ".".join(filter(None, place)) for place, (field, _) in _KEYS.items()}
#: of which each text has one meaning
_LISTS = (
    "trusted",
    "read",
    "passed",
    "sealed",
    "secrets",
    "allow",
    "deny",
    "signals",
    "programs",
    "environment_outside",
)
_POINTER = 8
