"""Where a migration is, by QEMU's names (qapi/migration.json, MigrationStatus)."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable

from sealift.errors import InternalError


class MigrationStatus(enum.StrEnum):
    """QEMU's MigrationStatus, as far as it exists here."""

    NONE = "none"
    """Nothing has begun."""
    SETUP = "setup"
    """Connecting, launching the receiver, exchanging keys."""
    ACTIVE = "active"
    """Rounds; the guest runs."""
    PRE_SWITCHOVER = "pre-switchover"
    """The guest is stopped, and its user is asked whether the rest may go."""
    DEVICE = "device"
    """The guest is stopped; the rest, the state and the handover."""
    CANCELLING = "cancelling"
    """A cancel was asked for and takes effect."""
    COMPLETED = "completed"
    """The guest runs on the target."""
    FAILED = "failed"
    """The guest runs here, unless the error's description says that it is fenced."""
    CANCELLED = "cancelled"
    """The guest runs here."""


_S = MigrationStatus
_GIVING_UP = {_S.CANCELLING, _S.FAILED}
TRANSITIONS: dict[MigrationStatus, set[MigrationStatus]] = {
    _S.NONE: {_S.SETUP},
    _S.SETUP: {_S.ACTIVE} | _GIVING_UP,
    _S.ACTIVE: {_S.PRE_SWITCHOVER, _S.DEVICE} | _GIVING_UP,
    _S.PRE_SWITCHOVER: {_S.DEVICE} | _GIVING_UP,
    _S.DEVICE: {_S.COMPLETED} | _GIVING_UP,
    _S.CANCELLING: {_S.CANCELLED, _S.FAILED},
    # A token that comes later by another way settles what a lost target left open.
    _S.FAILED: {_S.COMPLETED},
    _S.COMPLETED: set(),
    _S.CANCELLED: set(),
}

ENDED = frozenset({_S.COMPLETED, _S.FAILED, _S.CANCELLED})
"""A migration that is here does nothing any more."""


class StatusMachine:
    """Holds the status; `changed` is called, outside the lock, with each new one."""

    def __init__(self, changed: Callable[[MigrationStatus], None]) -> None:
        self._status = MigrationStatus.NONE
        self._changed = changed
        self._lock = threading.Lock()

    @property
    def status(self) -> MigrationStatus:
        """Where the migration is now."""
        return self._status

    def move(self, to: MigrationStatus) -> None:
        """Go to another status.

        Raises:
            InternalError: that one cannot follow this one.
        """
        with self._lock:
            if to not in TRANSITIONS[self._status]:
                raise InternalError(f"a migration that is {self._status.value} cannot become {to.value}")
            self._status = to
        self._changed(to)
