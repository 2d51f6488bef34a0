# SPDX-License-Identifier: GPL-2.0-or-later
"""veil verify"""

from __future__ import annotations

import click

from veil.cli.checks import checks_as_json, print_checks
from veil.cli.exit_statuses import EXIT_NOT_VERIFIED
from veil.cli.files import read_certificate_table, read_certificates, read_file
from veil.cli.option_types import hex_bytes
from veil.cli.output import emit_json
from veil.cli.trust_options import TrustOptions, trust_options
from veil.errors import VeilError
from veil.formats.domains import VMPLS

__all__ = ["verify"]


@click.command()
@click.argument("report")
@click.option("--vcek", metavar="FILE", help="The endorsement key's certificate, VCEK or VLEK.")
@click.option(
    "--certificates", metavar="FILE", help="What the host gave: the certificate table in configfs-tsm's auxblob."
)
@click.option("--report-data", metavar="HEX", help="The 64 bytes of REPORT_DATA that must be in the report.")
@trust_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(
    report: str,
    vcek: str | None,
    certificates: str | None,
    report_data: str | None,
    trust: TrustOptions,
    as_json: bool,
) -> int:
    """Verify the attestation REPORT of an SEV-SNP guest down to AMD's root; "-" is stdin.

    REPORT is the 1184 bytes as they are, in hexadecimal or in base64, or what an Azure CVM's vTPM has in its NV index
    0x01400001. Certificates may be PEM, DER, PKCS#7 or base64, any number in a file. Nothing is fetched. AMD's key
    distribution service has the certificates; CHIP_ID and the TCB's parts are in the report:

    \b
      kds=https://kdsintf.amd.com/vcek/v1/Milan
      curl -o chain.pem $kds/cert_chain
      curl -o vcek.der "$kds/CHIP_ID?blSPL=3&teeSPL=0&snpSPL=8&ucodeSPL=115"
      veil verify report.bin --vcek vcek.der --chain chain.pem --policy policy.toml

    In the guest, the kernel may have them from the host: configfs-tsm's outblob is the report, auxblob the table.

    \b
      veil verify outblob --certificates auxblob

    Exit status: 0 verified; 1 not verified; 125 there was nothing that could be verified.
    """
    from veil.formats.errors import FormatError
    from veil.remote import CertificateChain, read_report, verify_report

    own = [read_certificates(vcek)] if vcek else []
    believed = trust.trust()
    blobs, policy = [*own, *believed.certificates], believed.policy
    if report_data is not None:
        policy = policy.replace(report_data=hex_bytes(report_data, 64, "--report-data"))
    try:
        file = read_report(read_file(report))
        kind = file.signing_key
    except FormatError as error:
        raise VeilError(f"{report}: {error}") from error
    if certificates is not None:
        chain = CertificateChain.from_certificate_table(read_certificate_table(certificates), *blobs, kind=kind)
    elif file.certificate_table:
        chain = CertificateChain.from_certificate_table(file.certificate_table, *blobs, kind=kind)
    elif blobs:
        chain = CertificateChain.parse(*blobs, kind=kind)
    else:
        raise VeilError("no certificates: give --vcek and --chain, or --certificates")
    try:
        result = verify_report(
            file,
            chain,
            policy=policy,
            roots=believed.roots,
            at=believed.at,
            crls=believed.crls,
        )
    except FormatError as error:
        raise VeilError(f"{report}: {error}") from error
    found, runtime = result.report, file.runtime_data
    if as_json:
        emit_json(
            {
                "verified": result.ok,
                "machine": result.machine,
                "checks": checks_as_json(result.checks),
                "report": {
                    "version": found.version,
                    "vmpl": found.vmpl,
                    "policy": f"{found.policy:#x}",
                    "measurement": found.measurement.hex(),
                    "report_data": found.report_data.hex(),
                    "host_data": found.host_data.hex(),
                    "chip_id": found.chip_id.hex(),
                    "guest_svn": found.guest_svn,
                },
                "runtime_data": runtime.data.decode("utf-8", "backslashreplace") if runtime and result.ok else None,
            }
        )
    else:
        word = "verified" if result.ok else "NOT VERIFIED"
        asker = f"VMPL {found.vmpl}" if found.vmpl < VMPLS else "asked for by the host"
        print_checks(
            result.checks,
            verdict=[f"{word}; machine: {result.machine}; {asker}; launch digest {found.measurement.hex()}"],
        )
    return 0 if result.ok else EXIT_NOT_VERIFIED
