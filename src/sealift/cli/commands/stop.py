"""``sealift stop``: end a guest."""

from __future__ import annotations

import click

from sealift.cli.options import examples, host_option
from sealift.cli.places import Host


@click.command("stop", short_help="End a guest.", epilog=examples("sealift stop demo"))
@click.argument("name")
@host_option
def command(name: str, host: Host) -> None:
    """End the guest NAME and its platform; returns when both are gone.

    A confidential guest cannot be started again from where it was: its next launch is attested anew.
    """
    from sealift.cli.qmp_client import QmpClient
    from sealift.cli.rundir import process_of

    with QmpClient(host.run, name) as qmp, process_of(host.run, name) as process:
        qmp.execute("quit")
        process.wait_for_end()
