"""``sealift console``: attach to a guest's console."""

from __future__ import annotations

import click

from sealift.cli.options import examples, host_option
from sealift.cli.places import Host


@click.command(
    "console",
    short_help="Attach to a guest's console.",
    epilog=examples("sealift console demo", "sealift console demo | grep '^ledger 0'"),
)
@click.argument("name")
@host_option
def command(name: str, host: Host) -> None:
    """Show what the guest NAME printed so far and what it prints, and type into it; Ctrl-] detaches.

    Without a terminal, standard input is typed in, and output is shown until the guest ends.
    """
    from sealift.cli import rundir
    from sealift.cli.terminal import attach

    with rundir.connect(host.run, name, rundir.CONSOLE_SOCKET) as sock:
        attach(sock, name)
