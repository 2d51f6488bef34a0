# SPDX-License-Identifier: GPL-2.0-or-later
"""The options that say whom to believe and what to demand: of `veil verify`, `veil attest` and all that ask a CVM."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from veil.cli.files import read_certificates, read_file, read_launch_log
from veil.cli.option_types import Function, hex_bytes, options, parse_time
from veil.errors import VeilError

if TYPE_CHECKING:
    from veil.remote import Policy, Trust, TrustedRoots

__all__ = ["TrustOptions", "demands", "make_policy", "make_roots", "trust_options"]


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
