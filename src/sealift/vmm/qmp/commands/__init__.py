"""QMP commands by the chapters of QEMU's schema (qapi/*.json), and the table of them all."""

from __future__ import annotations

import functools

import msgspec

from sealift.vmm.guest import Guest
from sealift.vmm.qmp.commands import control, dump, foresight, human, machine, migration, run_state, sev
from sealift.vmm.qmp.events import EVENTS
from sealift.vmm.qmp.schema import AnyInfo, schema
from sealift.vmm.qmp.table import Command, CommandTable, NoArguments


class CommandInfo(msgspec.Struct, frozen=True):
    """QEMU's CommandInfo."""

    name: str


def query_commands(_: Guest, __: NoArguments) -> tuple[CommandInfo, ...]:
    """CommandInfo of every command."""
    return tuple(map(CommandInfo, COMMANDS.names()))


@functools.cache
def _schema() -> tuple[AnyInfo, ...]:
    return schema(COMMANDS, EVENTS)


def query_schema(_: Guest, __: NoArguments) -> tuple[AnyInfo, ...]:
    """SchemaInfo of every command and event, and of all types that they lead to."""
    return _schema()


COMMANDS = CommandTable(
    (
        *control.COMMANDS,
        Command("query-commands", NoArguments, query_commands),
        Command("query-qmp-schema", NoArguments, query_schema),
        *run_state.COMMANDS,
        *machine.COMMANDS,
        *migration.COMMANDS,
        *foresight.COMMANDS,
        *dump.COMMANDS,
        *sev.COMMANDS,
        *human.COMMANDS,
    )
)
"""Every command there is."""
