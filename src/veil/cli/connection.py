# SPDX-License-Identifier: GPL-2.0-or-later
"""What the commands share that ask a CVM elsewhere: where it is, whom to believe, and how refusals are explained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from veil.cli.option_types import options, parse_address
from veil.cli.trust_options import TrustOptions, trust_options
from veil.errors import VeilError

if TYPE_CHECKING:
    from veil.remote import ChannelClient, Trust

__all__ = ["connected", "connection_options"]

#: The command gets them as `connect` and `trust`, which are the arguments of `connected`.
connection_options = options(
    trust_options,
    click.option("--connect", required=True, metavar="HOST:PORT", help="Where the CVM's host listens."),
    click.option("--software", is_flag=True, help="Believe this installation's own software machine."),
    click.option("--launch-log", metavar="FILE", help="What the CVM is expected to be: of veil measure --log."),
)


@contextlib.contextmanager
def connected(*, connect: str, trust: TrustOptions, needs: str = "--reader") -> Iterator[tuple[ChannelClient, Trust]]:
    """A channel to a CVM that is to be attested, and what to believe. `needs` is the option by which a CVM is launched
    for users who do this. Raises VeilError."""
    from veil.formats.errors import FormatError
    from veil.formats.status import Status
    from veil.installation import owner_fingerprint, user_key
    from veil.remote import ChannelClient, RequestFailed

    try:
        believed = trust.of_a_cvm_elsewhere()
        with ChannelClient.connect(*parse_address(connect), identity=user_key()) as client:
            yield client, believed
    except RequestFailed as error:
        if error.status != Status.NOT_ALLOWED:
            raise
        raise VeilError(
            "this CVM was launched for others: it does not allow this to your key. Its launcher names your key "
            f"then: veil serve {needs} {owner_fingerprint().hex()} (the launch digest covers it, and becomes another)"
        ) from error
    except FormatError as error:
        raise VeilError(f"the CVM's answers are unusable: {error}") from error
