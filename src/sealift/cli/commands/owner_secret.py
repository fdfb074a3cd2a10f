"""``sealift owner secret``: seals a secret for one launch, or opens one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sealift.cli.options import examples, file_option
from sealift.cli.owner_options import KeyFiles, force_option, key_options

if TYPE_CHECKING:
    from sealift.sev.session import TransportKeys

FORMATS = ("sevctl", "sev-tool", "libvirt", "qmp")


@click.command(
    "secret",
    short_help="Seal a secret for a launch.",
    epilog=examples(
        "sealift owner secret luks-key:passphrase --measurement pYb2... --tik vm_tik.bin --tek vm_tek.bin",
        "sealift owner secret guest:token luks-key:pass --measurement m.b64 --tk tmp_tk.bin --format qmp",
        "sealift owner secret --open secret_header.bin secret_payload.bin --measurement m.b64 --tk tmp_tk.bin",
    ),
)
@click.argument("entries", nargs=-1, metavar="[GUID:FILE]...")
@file_option("--raw", "Seal the bytes of this file as they are, without a table.")
@click.option("--measurement", required=True, help="The launch's LAUNCH_MEASURE output: base64, or a file.")
@key_options
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default=FORMATS[0],
    show_default=True,
    help="Whose files to write; qmp prints the command that injects the secret.",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=".",
    show_default=True,
    help="Where to write the files.",
)
@click.option("--gpa", help="With --format qmp: where the secret goes, if not where the firmware says.")
@click.option(
    "--open",
    "opened",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="HEADER PAYLOAD",
    help="List a secret's entries.",
)
@force_option
def command(
    entries: tuple[str, ...],
    *,
    raw: Path | None,
    measurement: str,
    keys: KeyFiles,
    opened: tuple[Path, Path] | None,
    **rest: Any,  # noqa: ANN401  # _seal says
) -> None:
    """Seal secrets into a packet that only the launch with this measurement can open.

    Validate the measurement first (`sealift owner validate`): whoever seals for a guest trusts it. Every entry of the
    secret is a GUID (or one of the names luks-key and guest) and the file with its content.
    """
    from sealift.cli.owner_options import binary
    from sealift.sev.measurement import SIZE

    if bool(entries) + (raw is not None) + (opened is not None) != 1:
        raise click.UsageError("give entries (GUID:FILE), or --raw, or --open")
    transport = keys.require()
    measured = binary("measurement", measurement, {SIZE})
    if opened is not None:
        _open(opened, measured, transport)
    else:
        _seal(_plain(entries, raw), measured, transport, **rest)


def _plain(entries: tuple[str, ...], raw: Path | None) -> bytes:
    """What is sealed."""
    from sealift.owner.secretfiles import read_entry, read_whole
    from sealift.sev.secret import build_table

    return build_table(map(read_entry, entries)) if raw is None else read_whole(raw)


def _seal(
    plain: bytes, measured: bytes, keys: TransportKeys, *, form: str, directory: Path, gpa: str | None, force: bool
) -> None:
    from sealift.cli.owner_options import print_json
    from sealift.owner.files import write
    from sealift.owner.secretfiles import SealedSecret, SecretFormat
    from sealift.sev.secret import make_packet

    wanted = SecretFormat(form)
    sealed = SealedSecret(*make_packet(keys, measured, plain))
    if wanted is SecretFormat.QMP:
        print_json(sealed.command(_address(gpa)))
        return
    if gpa is not None:
        raise click.UsageError("--gpa is part of the command that --format qmp prints")
    files = sealed.files(directory, wanted)
    write(files, replace=force)
    click.echo(f"a secret of {len(plain)} bytes for the launch measured {measured.hex()[:16]}...")
    for file in files:
        click.echo(f"  {file.path}")


def _address(text: str | None) -> int | None:
    """A GPA from the command line.

    Raises:
        UsageError: it is none.
    """
    if text is None:
        return None
    try:
        gpa = int(text, 0)
    except ValueError:
        gpa = -1
    if gpa < 0 or gpa % 16 or gpa >= 1 << 52:
        raise click.UsageError(f"--gpa: {text!r} is no guest physical address that is a multiple of 16")
    return gpa


def _open(files: tuple[Path, Path], measured: bytes, keys: TransportKeys) -> None:
    """List what a packet carries, without its content."""
    from sealift.cli.table import print_table
    from sealift.owner.secretfiles import SealedSecret, name_of
    from sealift.sev.secret import find_entries, open_packet

    sealed = SealedSecret.read(*files)
    plain = open_packet(keys, measured, sealed.header, sealed.payload)
    places = find_entries(plain)
    if places is None:
        click.echo(f"{len(plain)} bytes without a table")
        return
    print_table(("ENTRY", "BYTES"), [(name_of(place.guid), str(place.end - place.start)) for place in places])
