"""``sealift platform``: the secure processor of a host, as its administrator sees it."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import click

from sealift.cli.options import examples, host_option
from sealift.cli.places import Host

_LAYOUTS: Final = ("pdh", "cert-chain", "platform", "full", "ca")


@click.group("platform", short_help="A host's secure processor: its state, certificates and owner.")
def command() -> None:
    """Look at a host's secure processor, export its certificates, and say who owns it.

    The files are those of sevctl and AMD's sev-tool. A host that does not exist yet is made.
    """


@command.command(
    "status",
    short_help="Firmware version, state, owner and guests.",
    epilog=examples("sealift platform status", "sealift platform status --json | jq .owner"),
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead.")
@host_option
def status(host: Host, *, as_json: bool) -> None:
    """Show the firmware's version, the platform's state, who owns it and which guests it has."""
    import msgspec

    from sealift.cli.host_platform import open_platform

    with open_platform(host) as platform:
        found = platform.overview()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
        return
    for name, value in (
        ("firmware", f"API {found.api_major}.{found.api_minor}, build {found.build_id}"),
        ("state", found.state),
        ("owner", "the platform itself" if found.owner == "self" else f"external, OCA {found.oca}"),
        ("SEV-ES", "yes" if found.es else "no"),
        ("guests", ", ".join(found.guests) or "none"),
        ("id", found.id),
    ):
        click.echo(f"{name:<10}{value}")


@command.command(
    "export",
    short_help="Write the platform's certificates to a file.",
    epilog=examples(
        "sealift platform export chain.cert",
        "sealift platform export --full chain.cert",
        "sealift platform export --layout pdh --base64 pdh.b64",
    ),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--full", "layout", flag_value="full", help="The same as --layout full.")
@click.option(
    "--layout",
    type=click.Choice(_LAYOUTS),
    default="platform",
    show_default=True,
    help="platform: PDH, PEK, OCA, CEK as sevctl exports them; full: with ASK and ARK; cert-chain: PEK, OCA, CEK.",
)
@click.option("--unsigned", is_flag=True, help="The CEK as firmware exports it, without the manufacturer's signature.")
@click.option("--base64", "as_base64", is_flag=True, help="As base64 text.")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@host_option
def export(file: Path, layout: str, host: Host, *, unsigned: bool, as_base64: bool, force: bool) -> None:
    """Write the platform's certificates to FILE: what an owner needs to verify it and to make launch sessions for it.

    The manufacturer of these platforms is not AMD: its root is in the layouts full and ca, and owners must be told to
    trust it.
    """
    from sealift.cli.host_platform import open_platform
    from sealift.owner.files import OutputFile, write
    from sealift.sev.certfile import Layout

    with open_platform(host) as platform:
        data = platform.certificates(endorsed=not unsigned).encode(Layout(layout))
    write([OutputFile.base64(file, data) if as_base64 else OutputFile(file, data)], replace=force)


@command.command(
    "csr",
    short_help="Write the platform's PEK for an owner to sign.",
    epilog=examples("sealift platform csr pek_csr.cert"),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@host_option
def csr(file: Path, host: Host, *, force: bool) -> None:
    """Write the certificate of the platform's PEK without signatures to FILE (PEK_CSR).

    An owner whose key is elsewhere signs it (`sealift owner sign`, or sev-tool's sign_pek_csr); what comes back is for
    `sealift platform provision --signed`.
    """
    from sealift.cli.host_platform import open_platform
    from sealift.owner.files import OutputFile, write

    with open_platform(host) as platform:
        data = platform.csr()
    write([OutputFile(file, data)], replace=force)


@command.command(
    "provision",
    short_help="Give the platform to an owner.",
    epilog=examples(
        "sealift platform provision --generate oca",
        "sealift platform provision oca.cert oca.key",
        "sealift platform provision --signed pek_csr.signed.cert oca.cert",
    ),
)
@click.argument("cert", required=False, type=click.Path(path_type=Path))
@click.argument("key", required=False, type=click.Path(path_type=Path))
@click.option("--generate", metavar="NAME", help="Make the owner's certificate and key first: NAME.cert and NAME.key.")
@click.option(
    "--signed",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="PEK OCA",
    help="Take the PEK that an owner elsewhere has signed (`sealift platform csr`), and its certificate.",
)
@host_option
def provision(
    cert: Path | None, key: Path | None, generate: str | None, signed: tuple[Path, Path] | None, host: Host
) -> None:
    """Have the owner with certificate CERT and private key KEY (its OCA) sign the platform's PEK.

    CERT is an SEV certificate, KEY is in DER or PEM, as `sevctl generate` and sev-tool make them. The platform gets a
    new PDH: sessions made before open no more. An owner stays until `sealift platform reset`.
    """
    from sealift.cli.host_platform import open_platform
    from sealift.owner.authority import OwnerAuthority, read_certificate
    from sealift.owner.files import write
    from sealift.sev.certificate import Usage

    ways = (key is not None, generate is not None, signed is not None)
    if sum(ways) != 1 or (cert is not None and key is None):
        raise click.UsageError("name the owner by CERT and KEY, or have it made by --generate, or say --signed")
    with open_platform(host) as platform, ExitStack() as undo:
        platform.require_unowned()
        if signed is not None:
            pek, oca = read_certificate(Usage.PEK, signed[0]), read_certificate(Usage.OCA, signed[1])
            platform.provision_signed(pek.encode(), oca.encode())
        elif cert is not None and key is not None:
            authority = OwnerAuthority.read(cert, key)
            oca = authority.certificate
            platform.provision(authority)
        else:
            authority = OwnerAuthority.generate()
            oca = authority.certificate
            files = authority.files(Path(f"{generate}.cert"), Path(f"{generate}.key"))
            write(files, replace=False)
            for file in files:
                undo.callback(file.path.unlink)
            platform.provision(authority)
            undo.pop_all()
    click.echo(f"sealift: the platform of {host.path} is owned by OCA {oca.fingerprint().hex()} from now on", err=True)


@command.command("rotate", short_help="Give the platform another Diffie-Hellman key.")
@host_option
def rotate(host: Host) -> None:
    """Replace the PDH: launch sessions that owners made for the old one open no more."""
    from sealift.cli.host_platform import open_platform

    with open_platform(host) as platform:
        platform.rotate()


@command.command("reset", short_help="Erase the platform's keys and its owner.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@host_option
def reset(host: Host, *, yes: bool) -> None:
    """Erase OCA, PEK and PDH, so that the platform is its own owner again, with new keys.

    The chip stays the same: its id and its CEK, and with them the manufacturer's endorsement.
    """
    from sealift.cli.host_platform import open_platform
    from sealift.errors import UserError

    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("nobody can be asked here; say --yes")
        if not click.confirm(f"Launch sessions made for {host.path} will open no more. Erase its keys?", err=True):
            raise UserError("nothing was erased")
    with open_platform(host) as platform:
        platform.reset()


@command.command("id", short_help="The chip's id.")
@host_option
def chip_id(host: Host) -> None:
    """Print the id under which the manufacturer knows the chip (GET_ID): 128 hexadecimal digits."""
    from sealift.cli.host_platform import open_platform

    with open_platform(host) as platform:
        click.echo(platform.chip_id())
