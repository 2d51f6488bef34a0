# SPDX-License-Identifier: GPL-2.0-or-later
"""veil inspect"""

from __future__ import annotations

from pathlib import Path

import click

from veil.cli.common import CvmOptions, Progress, cvm_options
from veil.cli.output import emit_json, say
from veil.errors import VeilError, describe

__all__ = ["inspect"]


@click.command()
@cvm_options()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="Also write a picture of the RMP.")
def inspect(cvm: CvmOptions, as_json: bool, png: Path | None) -> None:
    """Show a running CVM's domains and VMSAs, and what each VMPL may do with how many pages."""
    from veil.cvm import ConfidentialVM
    from veil.cvm.inspection import inspect_cvm
    from veil.cvm.rmp_picture import write_picture

    with ConfidentialVM(cvm.configuration(), progress=Progress(quiet=as_json)) as vm:
        seen = inspect_cvm(vm)
        if png is not None:
            try:
                write_picture(vm, png)
            except OSError as error:
                raise VeilError(f"cannot write {png}: {describe(error)}") from error
    if as_json:
        emit_json(seen.as_dict())
        return
    say(f"launch digest  {seen.launch_digest}")
    say(
        f"pages          {seen.pages}: {seen.assigned} private ({seen.validated} validated), {seen.shared} shared with"
        f" the host; {seen.large_entries} RMP entries of 2 MiB"
    )
    say()
    say("VCPU  VMPL  domain  VMSA          runs")
    for item in seen.vmsas:
        runs = f"{'hosted' if item.hosted else 'machine'} code{' (now)' if item.current else ''}"
        say(f"{item.vcpu:>4}  {item.vmpl:>4}  {item.domain:<6}  {item.gpa:#012x}  {runs}")
    say()
    say("VMPL  domain        read       write   user exec  super exec   (4 KiB pages)")
    for level in seen.levels:
        say(
            f"{level.vmpl:>4}  {level.domain:<6} {level.read:>11} {level.write:>11} {level.execute_user:>11}"
            f" {level.execute_supervisor:>11}"
        )
    if png is not None:
        say()
        say(f"picture: {png}")
