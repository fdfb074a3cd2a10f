"""QEMU's events for what happens to a guest."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator
from typing import Final, assert_never

import msgspec

from sealift.vmm.debug.dump import DumpInfo, DumpStatus
from sealift.vmm.events import (
    DumpEnded,
    Ending,
    GuestEvent,
    MigrationChanged,
    PassBegun,
    PowerButtonPressed,
    RunStateChanged,
    ShutdownCause,
)
from sealift.vmm.migration.parameters import Capability
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.qmp.message import Event
from sealift.vmm.runstate import RunState


class ShutdownData(msgspec.Struct, frozen=True):
    """Who ended the guest, and why."""

    guest: bool
    reason: ShutdownCause


class GuestPanicAction(enum.Enum):
    """QEMU's GuestPanicAction, as far as it exists here."""

    PAUSE = "pause"


class GuestPanickedData(msgspec.Struct, frozen=True):
    """What is done about it."""

    action: GuestPanicAction


class DumpQueryResult(msgspec.Struct, frozen=True, rename="kebab", omit_defaults=True):
    """QEMU's DumpQueryResult, in bytes of memory; `x_sealift_note` is what a reader has to know of the file."""

    status: DumpStatus
    completed: int
    total: int
    x_sealift_note: str | None = None

    @classmethod
    def of(cls, info: DumpInfo) -> DumpQueryResult:
        """In QEMU's names."""
        return cls(info.status, info.completed, info.total, info.note)


class MigrationData(msgspec.Struct, frozen=True):
    """The migration's new status."""

    status: MigrationStatus


class MigrationPassData(msgspec.Struct, frozen=True):
    """The round that begins, from 1."""

    number: int = msgspec.field(name="pass")


class DumpCompletedData(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a dump ended, and why it failed if it did."""

    result: DumpQueryResult
    error: str | None = None


EVENTS: Final[dict[str, type[msgspec.Struct] | None]] = {
    "DUMP_COMPLETED": DumpCompletedData,
    "GUEST_PANICKED": GuestPanickedData,
    "MIGRATION": MigrationData,
    "MIGRATION_PASS": MigrationPassData,
    "POWERDOWN": None,
    "RESUME": None,
    "SHUTDOWN": ShutdownData,
    "STOP": None,
}
"""Every event there is, with the type of its data (qapi/run-state.json, qapi/migration.json, qapi/dump.json)."""


def qmp_events(event: GuestEvent, capabilities: Collection[Capability]) -> Iterator[Event]:
    """The QMP events that `event` causes, in order; a migration's are for those who switched them on, as in QEMU."""
    match event:
        case RunStateChanged(before, after):
            yield from _run_state_events(before, after)
        case MigrationChanged(_, status):
            if Capability.EVENTS in capabilities:
                yield Event("MIGRATION", MigrationData(status))
        case PassBegun(number):
            if Capability.EVENTS in capabilities:
                yield Event("MIGRATION_PASS", MigrationPassData(number))
        case PowerButtonPressed():
            yield Event("POWERDOWN")
        case DumpEnded(info):
            yield Event("DUMP_COMPLETED", DumpCompletedData(DumpQueryResult.of(info), info.error))
        case Ending(cause):
            yield Event("SHUTDOWN", ShutdownData(cause.by_guest, cause))
        case _:
            assert_never(event)


def _run_state_events(before: RunState, after: RunState) -> Iterator[Event]:
    if after is RunState.GUEST_PANICKED:
        yield Event("GUEST_PANICKED", GuestPanickedData(GuestPanicAction.PAUSE))
    if before is RunState.RUNNING and after is not RunState.SHUTDOWN:
        yield Event("STOP")
    if after is RunState.RUNNING:
        yield Event("RESUME")
