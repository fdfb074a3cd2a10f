"""``sealift history``: what migrations were expected to cost, and what they did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sealift.cli.options import examples, host_option
from sealift.cli.places import Host

if TYPE_CHECKING:
    from sealift.cli.history import Entry


@click.command(
    "history",
    short_help="List migrations from a host: prediction beside outcome.",
    epilog=examples("sealift history", "sealift history demo --json | jq '.[-1].outcome'"),
)
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of a table.")
@host_option
def command(host: Host, name: str | None, *, as_json: bool) -> None:
    """List the migrations from a host, or those of the guest NAME: as `sealift plan` predicted them / as they went.

    A migration that nobody planned has a dash for the prediction. The host remembers the last 200.
    """
    import msgspec

    from sealift.cli.history import History
    from sealift.cli.table import print_table

    entries = [entry for entry in History(host.history).entries() if name in {None, entry.guest}]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(entries)).decode())
        return
    if not entries:
        click.echo("no migration from here is on record", err=True)
        return
    headings = ("ENDED", "GUEST", "TO", "STATUS", "TIME s", "DOWNTIME ms", "MiB", "ROUNDS")
    print_table(headings, [_row(entry) for entry in entries])


def _row(entry: Entry) -> tuple[str, ...]:
    import time

    expected, outcome = entry.predicted, entry.outcome
    return (
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.ended)),
        entry.guest,
        entry.uri,
        entry.status,
        _pair(None if expected is None else f"{expected.total_time / 1e3:.2f}", f"{outcome.total_time / 1e3:.2f}"),
        _pair(None if expected is None else str(expected.downtime), str(outcome.downtime)),
        _pair(
            None if expected is None else f"{expected.transferred / (1 << 20):.1f}",
            f"{outcome.transferred / (1 << 20):.1f}",
        ),
        _pair(None if expected is None else str(expected.rounds), str(outcome.rounds)),
    )


def _pair(expected: str | None, outcome: str) -> str:
    return f"{expected or '-'} / {outcome}"
