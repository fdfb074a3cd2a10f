"""``sealift migrate``: move a running guest."""

from __future__ import annotations

import click

from sealift.cli.options import examples, host_option
from sealift.cli.places import Host


@click.command(
    "migrate",
    short_help="Move a running guest to another host.",
    epilog=examples(
        "sealift migrate demo tcp:192.0.2.7:4444",
        "sealift migrate demo unix:/run/sealift/b.sock --downtime-limit 100 --json",
    ),
)
@click.argument("name")
@click.argument("uri")
@click.option(
    "--transfer",
    type=click.Choice(["ring", "mailbox"]),
    default="ring",
    show_default=True,
    help="How pages leave the guest's migration handler; the mailbox is the RFC's, one page at a time.",
)
@click.option(
    "--downtime-limit", type=click.IntRange(min=0), metavar="MS", help="How long the guest may stand still; as it runs."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object (QEMU's MigrationInfo).")
@host_option
def command(name: str, uri: str, transfer: str, downtime_limit: int | None, host: Host, *, as_json: bool) -> int:
    """Move the guest NAME to URI, where `sealift run --incoming` waits for it.

    Ctrl-C gives the migration up and leaves the guest running here. The exit status is 0 only when the guest runs
    on the other host.
    """
    import msgspec

    from sealift.cli.progress import progress_display
    from sealift.cli.qmp_client import QmpClient
    from sealift.cli.watch import describe, migrate, moved

    parameters: dict[str, object] = {"x_sealift_transfer": transfer}
    if downtime_limit is not None:
        parameters["downtime_limit"] = downtime_limit
    with QmpClient(host.run, name) as qmp:
        qmp.execute("migrate-set-parameters", **parameters)
        with progress_display(name) as show:
            info = migrate(qmp, uri, show)
    if as_json:
        click.echo(msgspec.json.encode(info).decode())
    if not moved(info):
        click.echo(f"sealift: {describe(name, uri, info)}", err=True)
        return 1
    if not as_json:
        click.echo(describe(name, uri, info))
    return 0
