# SPDX-License-Identifier: GPL-2.0-or-later
"""What `veil verify` and `veil attest` share: whom to believe, what to demand, and the outcome for people."""

from __future__ import annotations

import contextlib
import datetime
import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from veil.cli.exit_statuses import EXIT_NOT_VERIFIED
from veil.cli.files import read_certificates, read_file
from veil.cli.option_types import Function, options
from veil.cli.output import Mark, say, say_all, tell
from veil.errors import VeilError

if TYPE_CHECKING:
    from veil.formats.launch_digest import LaunchLog
    from veil.remote import Check, Policy, Trust, TrustedRoots

__all__ = [
    "TrustOptions",
    "checks_as_json",
    "demands",
    "failures_are_1",
    "hex_bytes",
    "make_policy",
    "make_roots",
    "parse_time",
    "print_checks",
    "read_certificate_table",
    "read_launch_log",
    "trust_options",
]


def failures_are_1(function: Function) -> Function:
    """A command whose exit status tells what is not as it was attested or signed from what cannot be reached."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        from veil.remote.errors import VerificationFailed

        try:
            return function(*args, **options)
        except VerificationFailed as error:
            tell(f"veil: NOT VERIFIED: {error}")
            return EXIT_NOT_VERIFIED

    return run  # type: ignore[return-value]


def read_certificate_table(name: str) -> bytes:
    """The same where a host's table is expected, whatever GUIDs are in it."""
    from veil.formats.certificate_table import parse_certificates
    from veil.formats.errors import FormatError
    from veil.remote.attestation.certificates import load_certificates

    data = read_file(name)
    try:
        parse_certificates(data)
    except FormatError as no_table:
        try:
            load_certificates(data)
        except FormatError as error:
            raise VeilError(f"{name}: {no_table}, and otherwise: {error}") from error
    return data


def read_launch_log(name: str) -> LaunchLog:
    """What `veil measure --log` wrote; raises VeilError."""
    from veil.formats.errors import FormatError
    from veil.formats.launch_digest import LaunchLog

    try:
        return LaunchLog.parse(read_file(name))
    except FormatError as error:
        raise VeilError(f"{name}: {error}; `veil measure --log` writes one") from error


def hex_bytes(text: str, length: int, what: str) -> bytes:
    """Hexadecimal digits as bytes; raises VeilError."""
    if not re.fullmatch(r"[0-9a-fA-F]+", text) or len(text) != 2 * length:
        raise VeilError(f"{what} must be {2 * length} hexadecimal digits")
    return bytes.fromhex(text)


def parse_time(text: str | None) -> datetime.datetime | None:
    """ISO 8601; without a zone it is UTC. Raises VeilError."""
    if text is None:
        return None
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise VeilError(f"--at {text!r} is not a time: write 2026-06-01, or 2026-06-01T12:00:00+00:00") from error
    return when if when.tzinfo is not None else when.replace(tzinfo=datetime.UTC)


def make_roots(software_root: str | None, *, software: bool | None = None) -> TrustedRoots:
    """AMD's, and what the user added. `software`: was --software given; None if there is no such option."""
    from veil.installation import known_software_root
    from veil.installation import software_root as own_root
    from veil.remote import TrustedRoots

    roots = TrustedRoots.amd()
    if software_root is not None:
        roots = roots.with_software_root(read_certificates(software_root))
    if software:
        return roots.with_software_root(own_root())
    own = known_software_root()
    if own is None:
        return roots
    option = f"--software-root {own}" if software is None else "--software"
    words = f"it is that of this installation's own software machine, which is believed only with {option}"
    # What others have signed can be verified even if a file of ours is damaged.
    with contextlib.suppress(VeilError):
        roots = roots.with_advice(read_file(str(own)), words)
    return roots


def make_policy(policy_file: str | None, measurements: Iterable[str]) -> Policy:
    """From file and options."""
    from veil.remote import Policy

    policy = Policy.load(Path(policy_file)) if policy_file is not None else Policy()
    return demands(policy, measurements)


def demands(policy: Policy, measurements: Iterable[str]) -> Policy:
    """With more launch digests."""
    more = tuple(hex_bytes(text, 48, "--measurement") for text in measurements)
    return policy.replace(measurement=(*policy.measurement, *more)) if more else policy


_TRUST_OPTIONS = (
    click.option(
        "--software-root", metavar="FILE",
        help="Believe machines of this root, too: software machines, which protect nobody from who runs them.",
    ),
    click.option("--chain", "chains", multiple=True, metavar="FILE", help="Certificates: ASK, ARK, VCEK."),
    click.option("--crl", "crls", multiple=True, metavar="FILE", help="A revocation list of the root."),
    click.option("--at", metavar="TIME", help="When certificates must be valid (ISO 8601, UTC); by default now."),
    click.option("--policy", "policy_file", metavar="FILE", help="What to demand, a TOML file (docs/attestation.md)."),
    click.option("--measurement", "measurements", multiple=True, metavar="HEX", help="A launch digest that is good."),
)  # fmt: skip


@dataclass(frozen=True)
class TrustOptions:
    """What the command line says of whom to believe and what to demand. `software`, `launch_log`: of commands that have
    them."""

    software: bool | None = None
    launch_log: str | None = None
    software_root: str | None = None
    chains: tuple[str, ...] = ()
    crls: tuple[str, ...] = ()
    at: str | None = None
    policy_file: str | None = None
    measurements: tuple[str, ...] = ()

    def trust(self) -> Trust:
        """All of it read; raises VeilError."""
        from veil.remote import Trust

        return Trust(
            make_policy(self.policy_file, self.measurements),
            roots=make_roots(self.software_root, software=self.software),
            certificates=tuple(read_certificates(name) for name in self.chains),
            crls=tuple(read_file(name) for name in self.crls),
            at=parse_time(self.at),
            expected=read_launch_log(self.launch_log) if self.launch_log is not None else None,
        )

    def of_a_cvm_elsewhere(self) -> Trust:
        """The same for a CVM of which nothing else says what it should be; raises VeilError."""
        trust = self.trust()
        if trust.expected is None and not trust.policy.measurement:
            raise VeilError("what is the CVM expected to be? give --measurement or --launch-log (veil measure)")
        return trust


def trust_options(function: Function) -> Function:
    """The options that say whom to believe and what to demand; the command gets them as `trust`, a `TrustOptions`."""
    names = [item.name for item in fields(TrustOptions)]

    @functools.wraps(function)
    def command(*args: Any, **values: Any) -> Any:
        chosen = {name: values.pop(name) for name in names if name in values}
        return function(*args, trust=TrustOptions(**chosen), **values)

    return options(*_TRUST_OPTIONS)(command)  # type: ignore[return-value]


def print_checks(checks: Iterable[Check], *, verdict: Iterable[str]) -> None:
    """A line a check, the verdict's lines, and for what failed where it is explained."""
    checks = list(checks)
    width = max((len(check.name) for check in checks), default=0)
    for check in checks:
        mark = Mark.FAIL if not check.ok else Mark.NOTE if check.note else Mark.OK
        say(f"{check.name:<{width}}  {check.words}", mark=mark)
    explained = dict.fromkeys(check.explained_at for check in checks if not check.ok)
    say_all([*verdict, *([f"explained in {', '.join(explained)}"] if explained else [])])


def checks_as_json(checks: Iterable[Check]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {"name": item.name, "ok": item.ok, "note": item.note, "words": item.words, "explained": item.explained_at}
        for item in checks
    ]
