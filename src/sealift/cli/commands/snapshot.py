"""``sealift snapshot``: save a running guest to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from sealift.cli.options import examples, host_option
from sealift.cli.places import Host

_PARAMETERS: Final = {"method": "x-sealift-method", "downtime_limit": "downtime-limit"}
"""QEMU's names of our options."""


@click.command(
    "snapshot",
    short_help="Save a running guest to a file.",
    epilog=examples(
        "sealift snapshot demo demo.snap",
        "sealift snapshot demo /srv/snapshots/monday.snap --downtime-limit 50",
        "sealift snapshot demo demo.snap --method psp",
        "sealift owner restores allowed",
        "sealift run --name again --restore demo.snap",
    ),
)
@click.argument("name")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--without-disks",
    is_flag=True,
    help="Save a guest with writable disks, of which the file holds nothing: pause it meanwhile, and copy the images.",
)
@click.option(
    "--method",
    type=click.Choice(["mh", "psp"]),
    show_default="as set over QMP, at first mh",
    help="Who encrypts the guest: its own migration handler, as its owner releases it, or the host's secure processor, "
    "for this very host, as its policy lets it (not with nosend).",
)
@click.option(
    "--downtime-limit",
    type=click.IntRange(min=0),
    metavar="MS",
    show_default="what `sealift run` was given",
    help="How long the guest may stand still.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object (QEMU's MigrationInfo).")
@host_option
def command(host: Host, name: str, path: Path, *, without_disks: bool, as_json: bool, **options: object) -> int:
    """Save the guest NAME to FILE, which must not exist, while it runs; it stands still for a moment and runs on.

    FILE is sealed by the guest's migration handler. Whoever has it learns what the guest shares with its host, and no
    more; to run it (`sealift run --restore FILE`) takes the owner's release, every time anew. Every restore takes the
    guest back to what it was, so an owner releases none before it was told `sealift owner restores allowed`.

    Ctrl-C gives it up and leaves no file. The exit status is 0 only when the file is there and whole.
    """
    import msgspec

    from sealift.cli.progress import progress_display
    from sealift.cli.qmp_client import QmpClient
    from sealift.cli.watch import Display, describe_snapshot, moved, snapshot

    parameters = {_PARAMETERS[option]: value for option, value in options.items() if value is not None}
    with QmpClient(host.run, name) as qmp, progress_display(name) as progress:
        display = Display(progress.show, _say)
        info = snapshot(qmp, path.absolute(), without_disks=without_disks, parameters=parameters, display=display)
    if as_json:
        click.echo(msgspec.json.encode(info).decode())
    if not moved(info):
        _say(describe_snapshot(name, path, info))
        return 1
    if not as_json:
        click.echo(describe_snapshot(name, path, info))
    return 0


def _say(sentence: str) -> None:
    click.echo(f"sealift: {sentence}", err=True)
