# SPDX-License-Identifier: GPL-2.0-or-later
"""veil inspect"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from veil.cli.cvm_options import CvmOptions, cvm_options
from veil.cli.output import emit_json, say, say_all
from veil.cli.progress import Progress
from veil.errors import VeilError, describe
from veil.formats.page_sizes import PAGE_SIZE

if TYPE_CHECKING:
    from veil.cvm.inspection import Inspection

__all__ = ["inspect"]

_SHOWN = 12


@click.command()
@cvm_options()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="Also write a picture of the RMP.")
def inspect(cvm: CvmOptions, as_json: bool, png: Path | None) -> None:
    """Show a running CVM's domains and VMSAs, what each VMPL may do with pages, and what its kernel may execute.

    Before and after lock-down:

    \b
      veil inspect --png before.png
      veil inspect --kci on --png after.png
    """
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
    say()
    say_all(_code_lines(seen))
    if png is not None:
        say()
        say(f"picture: {png}")


def _code_lines(seen: Inspection) -> Iterator[str]:
    """Who may execute what at CPL 0 of the kernel's VMPL."""
    yield f"the kernel's rights at VMPL {seen.kernel_vmpl}         pages"
    for item in seen.kernel_rights:
        held = {
            "read": item.read,
            "write": item.write,
            "user exec": item.execute_user,
            "super exec": item.execute_supervisor,
        }
        yield f"  {', '.join(name for name, has in held.items() if has) or 'none':<34} {item.pages:>9}"
    code = seen.supervisor_code
    if not code.locked:
        yield (
            f"supervisor code: whatever the kernel's page tables say, in {code.pages} pages; it may write "
            f"{code.writable} of them"
        )
        return
    yield f"supervisor code: {code.pages} pages, whatever the kernel's page tables say; it may write none of them"
    for gpa, size in code.ranges[:_SHOWN]:
        yield f"  {gpa:#012x} to {gpa + size - 1:#012x}  {size // PAGE_SIZE:>6} pages"
    if len(code.ranges) > _SHOWN:
        yield f"  and {len(code.ranges) - _SHOWN} more pieces (--json has all)"
