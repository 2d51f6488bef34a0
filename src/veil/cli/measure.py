# SPDX-License-Identifier: GPL-2.0-or-later
"""veil measure"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from veil.cli.cvm_options import CvmOptions, cvm_options
from veil.cli.output import emit_json, say, tell
from veil.cli.progress import Progress
from veil.errors import VeilError, describe

if TYPE_CHECKING:
    from veil.cvm import ConfidentialVM

__all__ = ["measure"]


@click.command()
@cvm_options(services=True, users=True, initrd=True, igvm=True)
@click.option("--log", "log_file", metavar="FILE", help="Write the launch log: every page's digest, by name.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def measure(
    cvm: CvmOptions,
    log_file: str | None,
    as_json: bool,
) -> int:
    """Compute the launch digest that a CVM with these options must report, without launching it.

    \b
      veil measure --memory 1G --vcpus 2
      veil measure --no-monitor --firmware debian --kernel bzImage --initrd initrd.img --append console=ttyS0
      veil measure --igvm svsm.igvm --memory 1G
      veil attest --connect HOST:PORT --measurement $(veil measure --json | jq -r .launch_digest)

    The digest covers what is listed, byte for byte. The CPUID page's contents are not part of an SNP launch digest;
    VeilMon refuses to start with others than those whose digest is in its (measured) parameters.
    """
    from veil.cvm import ConfidentialVM
    from veil.private_files import write_private
    from veil.snp import SnpError

    vm = ConfidentialVM(cvm.configuration(), progress=Progress(quiet=as_json))
    image = vm.build_image()
    log = image.log()
    digest = log.digest()
    try:
        image.require_acceptable(digest)
    except SnpError as error:
        raise VeilError(f"no machine launches it; its digest is {digest.hex()}; {error}") from error
    if log_file is not None:
        try:
            write_private(Path(log_file), log.pack())
        except OSError as error:
            raise VeilError(f"cannot write {log_file}: {describe(error)}") from error
    pages: dict[str, int] = {}
    for entry in log.entries:
        pages[entry.name] = pages.get(entry.name, 0) + entry.count
    made_from = _made_from(vm)
    if as_json:
        emit_json({"launch_digest": digest.hex(), "pages": pages, "made_from": made_from})
    else:
        say(digest.hex())
        for name, count in pages.items():
            tell(f"  {name:<14} {count:>6} page{'s' if count > 1 else ''}")
        for name, value in made_from.items():
            tell(f"  {name}: {value}")
    return 0


def _made_from(vm: ConfidentialVM) -> dict[str, str]:
    """On what the digest depends beside Veil and the options (docs/attestation.md)."""
    ingredients = vm.ingredients() or {}
    compilers = vm.compilers() if ingredients else {}
    packages = ", ".join(name for name in ingredients if name not in compilers)
    programs = {
        name: f"SHA-256 {ingredients[name]}, {compiler}" for name, compiler in compilers.items() if name in ingredients
    }
    return {"packages": packages, **programs}
