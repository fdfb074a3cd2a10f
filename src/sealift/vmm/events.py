"""What happens to a guest, told to whoever listens: QMP clients, the command line, tests."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from sealift.vmm.debug.dump import DumpInfo
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.runstate import RunState


class ShutdownCause(enum.Enum):
    """Why a VM ends, by QEMU's names (ShutdownCause in qapi/run-state.json)."""

    HOST_QMP_QUIT = "host-qmp-quit"
    HOST_SIGNAL = "host-signal"
    HOST_ERROR = "host-error"
    GUEST_SHUTDOWN = "guest-shutdown"
    GUEST_RESET = "guest-reset"
    GUEST_PANIC = "guest-panic"

    @property
    def by_guest(self) -> bool:
        """Whether the guest itself asked for it."""
        return self in {ShutdownCause.GUEST_SHUTDOWN, ShutdownCause.GUEST_RESET}


@dataclass(frozen=True, slots=True)
class RunStateChanged:
    """The VM went from one run state to another."""

    before: RunState
    after: RunState


class Direction(enum.Enum):
    """Which end of a migration this VMM is; or that the guest goes to a file, and stays."""

    OUTGOING = enum.auto()
    INCOMING = enum.auto()
    SNAPSHOT = enum.auto()


@dataclass(frozen=True, slots=True)
class MigrationChanged:
    """The migration has another status."""

    direction: Direction
    status: MigrationStatus


@dataclass(frozen=True, slots=True)
class Ending:
    """The VM is about to end."""

    cause: ShutdownCause


@dataclass(frozen=True, slots=True)
class PassBegun:
    """A migration away from here begins to send what was written since its last round; rounds count from 1."""

    number: int


@dataclass(frozen=True, slots=True)
class PowerButtonPressed:
    """Somebody asked the guest to shut down."""


@dataclass(frozen=True, slots=True)
class DumpEnded:
    """A dump of the guest's memory is over."""

    info: DumpInfo


GuestEvent: TypeAlias = RunStateChanged | MigrationChanged | PassBegun | PowerButtonPressed | DumpEnded | Ending
Listener: TypeAlias = Callable[[GuestEvent], None]


class Events:
    """Passes events on; thread-safe. Listeners run on the thread that caused the event and must not block."""

    def __init__(self, first: RunState) -> None:
        self._state = first
        self._listeners: list[Listener] = []
        self._lock = threading.Lock()

    def listen(self, listener: Listener) -> None:
        """Call `listener` with every event from now on."""
        with self._lock:
            self._listeners.append(listener)

    def unlisten(self, listener: Listener) -> None:
        """Stop calling it."""
        with self._lock:
            self._listeners.remove(listener)

    def publish(self, event: GuestEvent) -> None:
        """Tell everybody."""
        with self._lock:
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener(event)

    def run_state_changed(self, state: RunState) -> None:
        """For the machine: its run state is now `state`."""
        with self._lock:
            before, self._state = self._state, state
        if state is not before:
            self.publish(RunStateChanged(before, state))
