"""``sealift owner restores``: whether snapshots of the owner's guests may be restored."""

from __future__ import annotations

from pathlib import Path

import click

from sealift.cli.options import examples
from sealift.cli.owner_options import directory_option


@click.command(
    "restores",
    short_help="Whether snapshots may be restored.",
    epilog=examples("sealift owner restores", "sealift owner restores allowed"),
)
@click.argument("rule", required=False, type=click.Choice(["allowed", "refused"]))
@directory_option
def command(rule: str | None, owner: Path) -> None:
    """Say whether snapshots of this owner's guests may be restored, or without RULE print what was said last.

    Every restore takes a guest back to what it was, and makes another one of it if the first still runs; any VMM can
    save its guest for that. So they are refused until an owner allows them. It is asked anew each time, and refused
    holds from now on, for snapshots that exist as well.
    """
    from sealift.owner.owner import Owner
    from sealift.owner.settings import RestoreRule

    known = Owner(owner.absolute())
    if rule is not None:
        known.set_restores(RestoreRule(rule))
    click.echo(known.settings.restores.value)
