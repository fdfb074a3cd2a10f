"""``sealift owner``: what a guest's owner does without a VMM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sealift.cli.image_options import image_options
from sealift.cli.options import examples

if TYPE_CHECKING:
    from sealift.owner.measured import MeasuredPiece


@click.group("owner", short_help="What a guest's owner does without a VMM.")
def command() -> None:
    """Do the owner's part: trust nobody, and know beforehand what a platform must say."""


@command.command(
    "measure",
    short_help="The launch digest that a guest must have.",
    epilog=examples(
        "sealift owner measure --kernel vmlinuz --initrd initrd.img --append console=ttyS0",
        "sealift owner measure --kernel ledger --pieces",
        "sealift owner measure --kernel ledger --json | jq .digest",
    ),
)
@image_options
@click.option("--pieces", is_flag=True, help="Print every measured piece first: name, GPA, size, SHA-256.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead, with the pieces in it.")
def measure(*, pieces: bool, as_json: bool, **settings: Any) -> None:  # noqa: ANN401  # GuestOptions says
    """Compute a guest's launch digest (SHA-256, hexadecimal) from its files; it is alone on the last line.

    The guest is the one that `sealift run` launches with the same options, on a platform that runs the migration
    handler installed here.
    """
    import msgspec

    from sealift.cli.guest_options import GuestOptions
    from sealift.cli.recipes import make_recipe
    from sealift.cli.table import print_table
    from sealift.owner.measured import measure as measured
    from sealift.sev.policy import parse_policy

    options = GuestOptions(**settings)
    policy = parse_policy(options.policy)
    recipe = make_recipe(options.memory, options.vcpus, options.kernel, options.payload, options.append, options.initrd)
    image = measured(recipe.under(policy))
    if as_json:
        shown = {
            "digest": image.digest,
            "policy": int(policy),
            "machine": recipe.machine.value,
            "kernel-version": recipe.kernel_version(),
            "handler-digest": recipe.handler_digest.hex(),
            "pieces": image.pieces,
        }
        click.echo(msgspec.json.encode(shown).decode())
        return
    if pieces:
        rows = [(piece.name, _gpa(piece), str(piece.size), piece.sha256) for piece in image.pieces]
        print_table(("PIECE", "GPA", "SIZE", "SHA-256"), rows)
    click.echo(image.digest)


def _gpa(piece: MeasuredPiece) -> str:
    return "-" if piece.gpa is None else f"{piece.gpa:#x}"
