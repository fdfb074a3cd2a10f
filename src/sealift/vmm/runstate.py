"""Run states of a VM by QEMU's names, and which may follow which."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable

from sealift.errors import InternalError


class RunState(enum.Enum):
    """QEMU's RunState (qapi/run-state.json), as far as it exists here."""

    PRELAUNCH = "prelaunch"
    INMIGRATE = "inmigrate"
    RUNNING = "running"
    PAUSED = "paused"
    FINISH_MIGRATE = "finish-migrate"
    POSTMIGRATE = "postmigrate"
    GUEST_PANICKED = "guest-panicked"
    INTERNAL_ERROR = "internal-error"
    SHUTDOWN = "shutdown"


_S = RunState
_ENDED = {_S.SHUTDOWN}
TRANSITIONS: dict[RunState, set[RunState]] = {
    _S.PRELAUNCH: {_S.RUNNING, _S.PAUSED, _S.INTERNAL_ERROR} | _ENDED,
    _S.INMIGRATE: {_S.RUNNING, _S.PAUSED, _S.PRELAUNCH, _S.INTERNAL_ERROR} | _ENDED,
    _S.RUNNING: {_S.PAUSED, _S.FINISH_MIGRATE, _S.INMIGRATE, _S.GUEST_PANICKED, _S.INTERNAL_ERROR} | _ENDED,
    _S.PAUSED: {_S.RUNNING, _S.FINISH_MIGRATE, _S.INMIGRATE, _S.GUEST_PANICKED, _S.INTERNAL_ERROR} | _ENDED,
    _S.FINISH_MIGRATE: {_S.RUNNING, _S.PAUSED, _S.POSTMIGRATE, _S.INTERNAL_ERROR} | _ENDED,
    _S.POSTMIGRATE: {_S.INTERNAL_ERROR} | _ENDED,
    _S.GUEST_PANICKED: {_S.INTERNAL_ERROR} | _ENDED,
    _S.INTERNAL_ERROR: _ENDED,
    _S.SHUTDOWN: set(),
}


class RunStateMachine:
    """Holds the run state; `changed` is called, outside the lock, with each new one."""

    def __init__(self, first: RunState, changed: Callable[[RunState], None]) -> None:
        self._state = first
        self._changed = changed
        self._lock = threading.Lock()

    @property
    def state(self) -> RunState:
        """Where the VM is now."""
        return self._state

    def move(self, to: RunState) -> None:
        """Go to another state; going where it is already does nothing.

        Raises:
            InternalError: that state cannot follow this one.
        """
        with self._lock:
            if to is self._state:
                return
            if to not in TRANSITIONS[self._state]:
                raise InternalError(f"a VM that is {self._state.value} cannot become {to.value}")
            self._state = to
        self._changed(to)

    def move_from(self, states: frozenset[RunState], to: RunState) -> bool:
        """Go to another state if it is in one of `states`; whether it was."""
        with self._lock:
            if self._state not in states:
                return False
            self._state = to
        self._changed(to)
        return True
