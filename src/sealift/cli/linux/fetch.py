"""``python -m sealift.cli.linux.fetch``: get what Linux guests are made of into the cache, for later use.

The rig has no network, and CI wants downloads apart from tests.
"""

from __future__ import annotations

import sys

import click

from sealift.cli.linux.image import SERIES, guest_kernel
from sealift.cli.linux.initramfs import busybox
from sealift.errors import SealiftError, sentence


@click.command("fetch", context_settings={"ignore_unknown_options": True})
@click.option("--series", multiple=True, type=click.Choice(list(SERIES)))
@click.argument("others", nargs=-1, type=click.UNPROCESSED)
def main(series: tuple[str, ...], others: tuple[str, ...]) -> None:  # noqa: ARG001  # they are the demonstration's
    """Get a busybox, and kernels of these --series or else of any; what `sealift demo` takes beside is ignored."""
    try:
        click.echo(busybox())
        for name in series or (None,):
            click.echo(guest_kernel(name).vmlinuz)
    except SealiftError as error:
        click.echo(f"fetch: {sentence(error)}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
