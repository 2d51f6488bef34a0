# SPDX-License-Identifier: GPL-2.0-or-later
"""veil attest"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from veil.cli.checks import checks_as_json, print_checks
from veil.cli.cvm_options import CvmOptions, cvm_options
from veil.cli.exit_statuses import EXIT_NOT_VERIFIED
from veil.cli.option_types import parse_address
from veil.cli.output import emit_json
from veil.cli.progress import Progress
from veil.cli.trust_options import TrustOptions, trust_options
from veil.errors import VeilError
from veil.formats.printable import printable

if TYPE_CHECKING:
    from veil.cvm import ConfidentialVM, Configuration
    from veil.formats.launch_digest import LaunchLog
    from veil.remote import Attested, ChannelClient

__all__ = ["attest"]


@click.command()
@cvm_options(users=True)
@click.option("--connect", metavar="HOST:PORT", help="Attest a CVM that runs elsewhere (veil serve); boot none here.")
@click.option("--fresh", is_flag=True, help="Boot without a snapshot: neither use nor keep one.")
@click.option("--software", is_flag=True, help="Believe this installation's own software machine.")
@click.option("--launch-log", metavar="FILE", help="What a CVM elsewhere is expected to be: of veil measure --log.")
@trust_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def attest(
    cvm: CvmOptions,
    connect: str | None,
    fresh: bool,
    trust: TrustOptions,
    as_json: bool,
) -> int:
    """Verify that a secure channel ends in VeilMon inside the CVM that one means, and say what was verified.

    Without --connect it boots (or resumes) a CVM here and attests that one: the expected launch digest is computed
    from the same options. Its machine is a software machine, so it is believed only if one says so:

    \b
      veil attest --software
      veil serve --listen 127.0.0.1:7700 &
      veil attest --connect 127.0.0.1:7700 --software --measurement $(veil measure --json | jq -r .launch_digest)

    Exit status: 0 verified; 1 not verified; 125 there was nothing that could be verified.
    """
    from veil.formats.errors import FormatError
    from veil.remote import attest

    if cvm.no_monitor:
        raise VeilError("without a monitor there is no secure channel to attest; the guest can ask for reports itself")
    progress = Progress(quiet=as_json)
    try:
        if connect is not None:
            believed, opened = trust.of_a_cvm_elsewhere(), _elsewhere(connect)
        else:
            believed, opened = trust.trust(), _here(cvm.configuration(), fresh, progress)
        start = time.monotonic()
        with opened as (client, vm):
            if vm is not None:
                if believed.expected is None and not believed.policy.measurement:
                    believed = believed.replace(expected=vm.build_image().log())
                believed = believed.replace(host_log=vm.image.log() if vm.image is not None else None)
            result = attest(client, believed)
    except FormatError as error:
        raise VeilError(f"the evidence is unusable: {error}") from error
    _show(result, believed.expected, time.monotonic() - start, as_json=as_json)
    return 0 if result.ok else EXIT_NOT_VERIFIED


@contextlib.contextmanager
def _elsewhere(address: str) -> Iterator[tuple[ChannelClient, ConfidentialVM | None]]:
    from veil.installation import user_key
    from veil.remote import ChannelClient

    with ChannelClient.connect(*parse_address(address), identity=user_key()) as client:
        yield client, None


@contextlib.contextmanager
def _here(
    configuration: Configuration, fresh: bool, progress: Progress
) -> Iterator[tuple[ChannelClient, ConfidentialVM | None]]:
    from veil.cvm import ConfidentialVM
    from veil.installation import user_key
    from veil.remote import ChannelClient

    with (
        ConfidentialVM(configuration, fresh=fresh, progress=progress) as vm,
        ChannelClient(vm.user_transport(), identity=user_key()) as client,
    ):
        yield client, vm


def _covered(expected: LaunchLog) -> list[str]:
    """What of the image the digest covers byte for byte; and one page that it does not, but VeilMon checks."""
    from veil.formats.launch_digest import PageType

    measured = (PageType.NORMAL, PageType.VMSA)
    names = dict.fromkeys(entry.name for entry in expected.entries if entry.kind in measured)
    return [*names, "CPUID page (VeilMon compares it with a measured digest)"]


def _show(result: Attested, expected: LaunchLog | None, seconds: float, *, as_json: bool) -> None:
    report = result.verification.report
    covered = _covered(expected) if expected is not None else []
    services = {str(guid): printable(claims, None) for guid, claims in result.services.items()}
    if as_json:
        emit_json(
            {
                "verified": result.ok,
                "machine": result.machine,
                "checks": checks_as_json(result.checks),
                "launch_digest": report.measurement.hex(),
                "covers": covered,
                "vmpl": report.vmpl,
                "policy": f"{report.policy:#x}",
                "services": services,
                "seconds": round(seconds, 3),
            }
        )
        return
    verdict = [f"{'verified' if result.ok else 'NOT VERIFIED'}; machine: {result.machine}"]
    verdict.append(f"launch digest {report.measurement.hex()}")
    if covered and result.ok:
        verdict.append(f"  it covers: {', '.join(covered)}")
    if result.ok:
        verdict.append(f"protected services: {', '.join(services) or 'none'}")
        verdict += [f"  {guid}: {claims}" for guid, claims in services.items() if claims]
    print_checks(result.checks, verdict=verdict)
