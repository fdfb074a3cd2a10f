"""``sealift owner resume``: my guest's target is lost; let it run on where it stands still."""

from __future__ import annotations

from pathlib import Path

import click

from sealift.cli.options import examples
from sealift.cli.owner_options import directory_option, force_option

_RISK = "If the target runs the guest after all, there will be two of it. Is the target lost for certain?"


@click.command(
    "resume",
    short_help="Let a guest run on whose target was lost.",
    epilog=examples(
        "sealift token export demo -o request.bin",
        "sealift owner resume request.bin --reason 'host b burnt down'",
        "sealift token import demo request.bin.resume",
    ),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    show_default="FILE.resume",
    help="Where to write the token.",
)
@click.option("--reason", default="", help="Why, for the owner's log.")
@click.option("--yes", is_flag=True, help="Do not ask: the target is lost for certain.")
@force_option
@directory_option
def command(file: Path, output: Path | None, reason: str, owner: Path, *, yes: bool, force: bool) -> None:
    """Let a guest run on at the source of a handover whose target was lost. FILE is from `sealift token export`.

    Between the source's last word and the target's nobody can know whether the target runs the guest. Only you can
    rule it out: it is switched off, say, or you were there. The token made here lets the source run the guest on. The
    launch at the target gets nothing more from you: should it live after all, it can move nowhere and no snapshot of
    it is restored.
    """
    from sealift.owner.files import OutputFile, parsed, write
    from sealift.owner.owner import Owner
    from sealift.owner.resumption import judge
    from sealift.wire.resume import REQUEST_SIZE, split_request

    known = Owner(owner.absolute())
    request = parsed("resume request", file, REQUEST_SIZE, lambda data: split_request(data) and data)
    lost = judge(request, known.ledger)
    click.echo(f"guest      {lost.source.instance_id.hex()}")
    click.echo(f"migration  {lost.migration.hex()}")
    click.echo(f"from       launch {lost.source.launch_id} on host {lost.source.host.hex()}, where it stands still")
    click.echo(f"to         launch {lost.target.launch_id} on host {lost.target.host.hex()}")
    if not yes:
        click.confirm(_RISK, abort=True)
    path = output or file.with_name(f"{file.name}.resume")
    write([OutputFile(path, known.resume(request, reason))], replace=force)
    click.echo(f"{path}: for the source (sealift token import)")
