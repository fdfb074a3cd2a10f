"""``sealift ps``: the guests of a host."""

from __future__ import annotations

import click

from sealift.cli.options import examples, host_option
from sealift.cli.places import Host


@click.command(
    "ps", short_help="List the guests of a host.", epilog=examples("sealift ps", "sealift ps --json | jq '.[].name'")
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of a table.")
@host_option
def command(host: Host, *, as_json: bool) -> None:
    """List the running guests of a host: state, processes, size, and how far a migration is."""
    import msgspec

    from sealift.cli.overview import guests_of
    from sealift.cli.table import print_table

    guests = guests_of(host)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(guests)).decode())
        return
    if not guests:
        click.echo(f"no guest runs on {host.path}", err=True)
        return
    headings = ("NAME", "STATE", "PID", "PLATFORM", "MEMORY", "VCPUS", "MIGRATION")
    print_table(headings, [guest.row() for guest in guests])
