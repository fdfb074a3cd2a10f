"""QMP commands by the chapters of QEMU's schema (qapi/*.json), and the table of them all."""

from __future__ import annotations

from sealift.vmm.guest import Guest
from sealift.vmm.qmp.commands import control, foresight, machine, migration, run_state, sev
from sealift.vmm.qmp.table import Command, CommandTable, NoArguments


def query_commands(_: Guest, __: NoArguments) -> list[dict[str, str]]:
    """CommandInfo of every command."""
    return [{"name": name} for name in COMMANDS.names()]


COMMANDS = CommandTable(
    (
        *control.COMMANDS,
        Command("query-commands", NoArguments, query_commands),
        *run_state.COMMANDS,
        *machine.COMMANDS,
        *migration.COMMANDS,
        *foresight.COMMANDS,
        *sev.COMMANDS,
    )
)
"""Every command there is."""
