"""``sealift check``: whether things are as they should be."""

from __future__ import annotations

import click

from sealift.cli.options import examples


@click.group("check", short_help="Look whether KVM can be used here.", epilog=examples("sealift check kvm"))
def command() -> None:
    """Look whether something is as it should be; exit status 0 if it is, and 1 with the reason if not."""


@command.command("kvm", short_help="Whether KVM can run guests on this machine.")
def kvm() -> int:
    """Run KVM's self-test in a process of its own: long mode, SSE, VMMCALL, both windows on memory and their logs.

    Without a usable KVM, guests run on the portable engine, which runs Sealift's own small programs and no Linux.
    """
    from sealift.silicon.engines.kvm.usable import check

    check(anew=True)
    click.echo("KVM can run guests here")
    return 0
