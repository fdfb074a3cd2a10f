"""``sealift monitor``: the human monitor of a guest."""

from __future__ import annotations

import click

from sealift.cli.options import examples, host_option
from sealift.cli.places import Host


@click.command(
    "monitor",
    short_help="Type commands at a guest's human monitor.",
    epilog=examples(
        "sealift monitor demo",
        "sealift monitor demo info migrate",
        r"printf 'stop\ninfo status\n' | sealift monitor demo",
    ),
    context_settings={"ignore_unknown_options": True},
)
@click.argument("name")
@click.argument("line", metavar="[COMMAND]...", nargs=-1)
@host_option
def command(name: str, line: tuple[str, ...], host: Host) -> None:
    """Have the VMM of the guest NAME carry out commands of QEMU's human monitor, and show what it answers.

    COMMAND is one of them; without one they are read from standard input, on a terminal with the editing and the
    history of a shell, until Ctrl-D. `help` lists what there is. What goes wrong is part of the answer, too; scripts
    that must know ask `sealift qmp`.
    """
    import sys

    from sealift.cli.monitor_client import MonitorClient, converse

    with MonitorClient(host.run, name) as monitor:
        if line:
            click.echo(monitor.ask(" ".join(line)), nl=False)
        else:
            converse(monitor, sys.stdin)
