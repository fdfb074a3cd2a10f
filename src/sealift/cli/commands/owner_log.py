"""``sealift owner log``: what the owner decided, and why it refused what it refused."""

from __future__ import annotations

from pathlib import Path

import click

from sealift.cli.options import examples
from sealift.cli.owner_options import directory_option


@click.command(
    "log",
    short_help="What the owner decided, and why.",
    epilog=examples("sealift owner log", "sealift owner log --refused --json"),
)
@click.option("--refused", is_flag=True, help="Refusals only.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for every decision.")
@directory_option
def command(owner: Path, *, refused: bool, as_json: bool) -> None:
    """Print every decision, the oldest first: launches, receivers, restores, secrets, changed rules.

    The log keeps the last two thousand decisions at least; who asks without end can push older ones out.
    """
    from sealift.cli.owner_options import print_json
    from sealift.owner.decisions import Outcome
    from sealift.owner.owner import Owner

    for decision in Owner(owner.absolute()).log.read():
        if refused and decision.outcome is not Outcome.REFUSED:
            continue
        if as_json:
            print_json(decision)
        else:
            click.echo(decision.sentence)
