"""``sealift owner sign``: makes a platform the owner's."""

from __future__ import annotations

from pathlib import Path

import click

from sealift.cli.options import examples
from sealift.cli.owner_options import force_option


@click.command(
    "sign",
    short_help="Sign a platform's PEK.",
    epilog=examples("sealift owner sign pek_csr.cert oca.cert oca.key pek_csr.signed.cert"),
)
@click.argument("request", type=click.Path(path_type=Path))
@click.argument("cert", type=click.Path(path_type=Path))
@click.argument("key", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@force_option
def command(request: Path, cert: Path, key: Path, file: Path, *, force: bool) -> None:
    """Sign the PEK in REQUEST as the owner with certificate CERT and private key KEY (its OCA), and write it to FILE.

    REQUEST is what a platform answers to PEK_CSR (`sealift platform csr`, sev-tool's pek_csr.cert). With FILE and CERT
    the platform's administrator lets the owner in (`sealift platform provision --signed`, sev-tool's pek_cert_import);
    KEY stays with the owner.
    """
    from sealift.owner.authority import OwnerAuthority, read_certificate
    from sealift.owner.files import OutputFile, write
    from sealift.sev.certificate import Usage

    authority = OwnerAuthority.read(cert, key)
    signed = authority.signed(read_certificate(Usage.PEK, request).encode())
    write([OutputFile(file, signed)], replace=force)
