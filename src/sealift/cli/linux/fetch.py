"""``python -m sealift.cli.linux.fetch [SERIES …]``: get kernels of Linux guests into the cache, for later use.

The rig has no network, and CI wants downloads apart from tests.
"""

from __future__ import annotations

import sys

import click

from sealift.cli.linux.image import DEFAULT_SERIES, SERIES
from sealift.cli.linux.kernels import kernel
from sealift.errors import SealiftError, sentence


@click.command("fetch")
@click.argument("series", nargs=-1, type=click.Choice(list(SERIES)))
def main(series: tuple[str, ...]) -> None:
    """Get the kernels of these SERIES, of the default one if none is named."""
    try:
        for name in series or (DEFAULT_SERIES,):
            click.echo(kernel(SERIES[name]).vmlinuz)
    except SealiftError as error:
        click.echo(f"fetch: {sentence(error)}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
