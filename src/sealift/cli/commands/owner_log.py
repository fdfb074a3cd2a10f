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

    The log keeps some 3,000 decisions at least, and as many refusals: who asks without end pushes nothing but older
    refusals out. Refusals that repeat each other are shown as one; --json has each.
    """
    from sealift.cli.owner_options import print_json
    from sealift.owner.decisions import Outcome, folded
    from sealift.owner.owner import Owner

    decisions = Owner(owner.absolute()).log.read()
    if refused:
        decisions = (decision for decision in decisions if decision.outcome is Outcome.REFUSED)
    if as_json:
        for decision in decisions:
            print_json(decision)
    else:
        for repeated in folded(decisions):
            click.echo(repeated.sentence)
