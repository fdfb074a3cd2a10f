"""qapi/run-state.json and the run-state part of qapi/misc.json: is it running, stop, go on, shut down."""

from __future__ import annotations

import msgspec

from sealift.vmm.guest import Guest
from sealift.vmm.qmp.table import Command, NoArguments, Runs
from sealift.vmm.runstate import RunState


class StatusInfo(msgspec.Struct, frozen=True):
    """QEMU's StatusInfo."""

    running: bool
    status: RunState


def query_status(guest: Guest, _: NoArguments) -> StatusInfo:
    """StatusInfo."""
    state = guest.state
    return StatusInfo(state is RunState.RUNNING, state)


def stop(guest: Guest, _: NoArguments) -> None:
    """Stop the guest; with nothing to stop, nothing happens."""
    guest.stop()


def cont(guest: Guest, _: NoArguments) -> None:
    """Let the guest run (on)."""
    guest.resume()


def system_powerdown(guest: Guest, _: NoArguments) -> None:
    """Press the guest's power button; whether it shuts down is up to it."""
    guest.power_down()


COMMANDS = (
    Command("query-status", NoArguments, query_status),
    Command("stop", NoArguments, stop, Runs.IN_THREAD),
    Command("cont", NoArguments, cont, Runs.IN_THREAD),
    Command("system_powerdown", NoArguments, system_powerdown, Runs.IN_THREAD),
)
