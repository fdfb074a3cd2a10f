"""``sealift owner sign``: makes a platform the owner's."""

from __future__ import annotations

import os
from pathlib import Path

import click

from sealift.cli.options import examples
from sealift.cli.owner_options import force_option


@click.command(
    "sign",
    short_help="Sign a platform's PEK, to own the platform.",
    epilog=examples(
        "sealift owner sign pek_csr.cert pek.cert --generate oca",
        "sealift owner sign pek_csr.cert pek.cert --oca oca.cert oca.key",
    ),
)
@click.argument("request", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--oca",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="CERT KEY",
    help="The owner's certificate and private key (DER or PEM), as `sevctl generate` and sev-tool make them.",
)
@click.option("--generate", metavar="NAME", help="Make both first: NAME.cert and NAME.key.")
@force_option
def command(request: Path, file: Path, oca: tuple[Path, Path] | None, generate: str | None, *, force: bool) -> None:
    """Sign the PEK in REQUEST with the owner's key (its OCA), and write it to FILE.

    REQUEST is what a platform answers to PEK_CSR (`sealift platform csr`, sev-tool's pek_csr.cert). With FILE and the
    owner's certificate the platform's administrator lets the owner in (`sealift platform provision --signed`,
    sev-tool's pek_cert_import); the key stays with the owner, and no file with one is ever replaced.
    """
    from sealift.errors import UserError
    from sealift.owner.authority import OwnerAuthority, read_certificate
    from sealift.owner.files import OutputFile, write
    from sealift.sev.certificate import Usage

    if (oca is None) is (generate is None):
        raise click.UsageError("name the owner by --oca CERT KEY, or have it made by --generate")
    pek = read_certificate(Usage.PEK, request).encode()
    if oca is not None:
        authority, made = OwnerAuthority.read(*oca), []
    else:
        authority = OwnerAuthority.generate()
        made = authority.files(Path(f"{generate}.cert"), Path(f"{generate}.key"))
    for existing in (each.path for each in made if os.path.lexists(each.path)):
        raise UserError(f"{existing} exists already, and may be an owner's; choose another name for --generate")
    write([*made, OutputFile(file, authority.signed(pek))], replace=force)
