"""QEMU's events for what happens to a guest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

from sealift.vmm.events import Ending, GuestEvent, MigrationChanged, RunStateChanged
from sealift.vmm.qmp.message import Event
from sealift.vmm.runstate import RunState


def qmp_events(event: GuestEvent) -> Iterator[Event]:
    """The QMP events (qapi/run-state.json, qapi/migration.json) that `event` causes, in order."""
    match event:
        case RunStateChanged(before, after):
            yield from _run_state_events(before, after)
        case MigrationChanged(_, status):
            yield Event("MIGRATION", {"status": status.value})
        case Ending(cause):
            yield Event("SHUTDOWN", {"guest": cause.by_guest, "reason": cause.value})
        case _:
            assert_never(event)


def _run_state_events(before: RunState, after: RunState) -> Iterator[Event]:
    if after is RunState.GUEST_PANICKED:
        yield Event("GUEST_PANICKED", {"action": "pause"})
    if before is RunState.RUNNING and after is not RunState.SHUTDOWN:
        yield Event("STOP")
    if after is RunState.RUNNING:
        yield Event("RESUME")
