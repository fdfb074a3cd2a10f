"""``sealift token``: tokens of a handover that broke off, as files."""

from __future__ import annotations

from pathlib import Path

import click

from sealift.cli.options import examples, host_option
from sealift.cli.owner_options import force_option
from sealift.cli.places import Host


@click.group(
    "token",
    short_help="Settle a handover that broke off.",
    epilog=examples("sealift token export demo --host /srv/target", "sealift token import demo demo.token"),
)
def command() -> None:
    """Settle a migration whose connection broke while the guest was handed over.

    A source that has passed its right to run the guest on, and heard nothing since, keeps the guest stopped: only a
    token says where it runs. The target's says it for certain. If the target is lost, the guest's owner decides.
    """


@command.command(
    "export",
    short_help="Write what this host knows.",
    epilog=examples(
        "sealift token export demo --host /srv/target",
        "sealift token export demo -o request.bin && sealift owner resume request.bin",
    ),
)
@click.argument("name")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    show_default="NAME.token",
    help="Where to write it.",
)
@force_option
@host_option
def export(host: Host, name: str, output: Path | None, *, force: bool) -> None:
    """Write what this host can say of the handover of the guest NAME.

    On a target: the token that it kept because no connection brought it to the source. On the source: what its
    migration handler asks the guest's owner.
    """
    from sealift.cli.tokens import exported
    from sealift.owner.files import OutputFile, write

    token, meaning = exported(host, name)
    path = output or Path(f"{name}.token")
    write([OutputFile(path, token)], replace=force)
    click.echo(f"{path}: {meaning}")


@command.command(
    "import",
    short_help="Bring the guest a token.",
    epilog=examples("sealift token import demo demo.token"),
)
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@host_option
def import_(host: Host, name: str, file: Path) -> None:
    """Bring the guest NAME, which stands still since its handover broke off, the token in FILE.

    It is the target's, or its owner's if the target is lost. No other guest takes it, and this one only for the
    migration that it is about.
    """
    from sealift.cli.qmp_client import QmpClient
    from sealift.cli.recipes import read_file
    from sealift.cli.tokens import brought

    token = read_file("token", file)
    with QmpClient(host.run, name) as qmp:
        click.echo(brought(qmp, token))
