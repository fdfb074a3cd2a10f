"""``sealift owner``: what a guest's owner does without a VMM."""

from __future__ import annotations

import click

from sealift.cli.commands import (
    owner_chain,
    owner_log,
    owner_measure,
    owner_receipt,
    owner_receivers,
    owner_report,
    owner_restores,
    owner_resume,
    owner_secret,
    owner_serve,
    owner_session,
    owner_sign,
    owner_validate,
)
from sealift.cli.options import examples


class _InOrder(click.Group):
    """Subcommands in the order of a launch."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's interface
        return list(self.commands)


@click.group(
    "owner",
    cls=_InOrder,
    short_help="What a guest's owner does without a VMM.",
    epilog=examples("sealift owner chain chain.cert", "sealift owner measure --kernel ledger"),
)
def command() -> None:
    """Do the owner's part: trust nobody, and know beforehand what a platform must say.

    Every file can be another tool's: sevctl's, sev-tool's, QEMU's or libvirt's.
    """


_STEPS = (
    *(owner_sign.command, owner_chain.command, owner_session.command, owner_measure.command, owner_validate.command),
    *(owner_secret.command, owner_report.command),
    *(owner_receivers.approve, owner_receivers.revoke, owner_receivers.show, owner_restores.command),
    *(owner_receipt.command, owner_resume.command, owner_log.command, owner_serve.command),
)
for _step in _STEPS:
    command.add_command(_step)
