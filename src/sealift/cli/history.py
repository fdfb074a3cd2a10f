"""What migrations from this host were expected to cost, and what they did: a bounded file in the host's directory.

A line is one migration, as JSON; the VMM that it left appends it, however the migration was begun. When the file is
full, the oldest lines go.
"""

from __future__ import annotations

import fcntl
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from sealift.errors import UserError
from sealift.vmm.events import Direction, GuestEvent, MigrationChanged
from sealift.vmm.guest import Guest
from sealift.vmm.migration.plan import Experience
from sealift.vmm.migration.stats import DowntimePart, MigrationInfo
from sealift.vmm.migration.status import ENDED, MigrationStatus
from sealift.wire.handover import Method

KEPT: Final = 200
"""Migrations: years of a workstation, weeks of a host that is drained daily."""

_LAST: Final = 10
"""Migrations whose medians a plan takes: hosts change, and old ones tell of others."""

_FILE_MODE: Final = 0o600

_LIMIT: Final = 1 << 20
"""Bytes read: several times what is kept."""


class Figures(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """A migration in numbers: times in ms, bytes, rounds; `standstill` is the downtime without the last pages."""

    total_time: int
    downtime: int
    transferred: int
    rounds: int
    setup_time: int = 0
    standstill: int = 0


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab", omit_defaults=True):
    """One migration; without a plan for its destination nothing was predicted. `ended` is seconds since the epoch."""

    ended: int
    guest: str
    uri: str
    status: str
    outcome: Figures
    predicted: Figures | None = None
    method: str = ""


class History:
    """The file of one host."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> list[Entry]:
        """All migrations on record, oldest first.

        Raises:
            UserError: the file cannot be read, or is none of ours.
        """
        try:
            with self._path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)  # nobody is in the middle of writing it
                return _parse(file.read(_LIMIT))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"the history {self._path} cannot be read") from error
        except msgspec.DecodeError as error:
            raise UserError(f"the history {self._path} does not parse; move it away") from error

    def experience(self, method: Method, uri: str) -> Experience | None:
        """What the last migrations by a method took, those to `uri` if there were any; None if none is on record.

        Raises:
            UserError: as `entries`.
        """
        completed, known = MigrationStatus.COMPLETED.value, self.entries()
        alike = [entry for entry in known if (entry.status, entry.method) == (completed, method.value)]
        these = ([entry for entry in alike if entry.uri == uri] or alike)[-_LAST:]
        if not these:
            return None
        setup, standstill = (
            statistics.median(getattr(entry.outcome, name) for entry in these) / 1e3
            for name in ("setup_time", "standstill")
        )
        return Experience(len(these), setup, standstill)

    def add(self, entry: Entry) -> None:
        """Put a migration on record.

        Raises:
            UserError: the file cannot be written, or is none of ours.
        """
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE_MODE)
            with os.fdopen(descriptor, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                kept = [*_parse(file.read(_LIMIT)), entry][-KEPT:]
                file.seek(0)
                file.write(b"".join(msgspec.json.encode(known) + b"\n" for known in kept))
                file.truncate()
        except OSError as error:
            raise UserError(f"the history {self._path} cannot be written") from error
        except msgspec.DecodeError as error:
            raise UserError(f"the history {self._path} does not parse; move it away") from error


def _parse(data: bytes) -> list[Entry]:
    return [msgspec.json.decode(line, type=Entry) for line in data.splitlines()]


def keep_history(
    guest: Guest, history: History, notify: Callable[[str], None], wall_clock: Callable[[], float] = time.time
) -> None:
    """Have every migration away from here put on record as it ends, for plans to know of those before.

    `notify` is told if that is not possible.
    """

    def listen(event: GuestEvent) -> None:
        match event:
            case MigrationChanged(Direction.OUTGOING, status) if status in ENDED:
                try:
                    history.add(entry_of(guest, status.value, int(wall_clock())))
                except UserError as error:
                    notify(str(error))

    guest.events.listen(listen)
    guest.experience = history.experience


def entry_of(guest: Guest, status: str, ended: int) -> Entry:
    """The last migration of a guest."""
    info, plan = guest.migration(), guest.planned()
    outcome = Figures(0, 0, 0, 0) if info is None else _figures(info)
    predicted = None
    if plan is not None:
        forecast, conditions = plan.forecast, plan.conditions
        predicted = Figures(
            _ms(forecast.total_s),
            _ms(forecast.downtime_s),
            forecast.transferred,
            forecast.rounds,
            _ms(conditions.setup_s),
            _ms(conditions.standstill_s),
        )
    return Entry(ended, guest.name, guest.destination or "", status, outcome, predicted, guest.method.value)


def _figures(info: MigrationInfo) -> Figures:
    parts = info.x_sealift_downtime_parts or {}
    paged = {DowntimePart.LAST_ROUND.value, DowntimePart.SWITCHOVER.value}
    return Figures(
        total_time=info.total_time,
        downtime=info.downtime or 0,
        transferred=0 if info.ram is None else info.ram.transferred,
        rounds=0 if info.ram is None else info.ram.dirty_sync_count,
        setup_time=info.setup_time or 0,
        standstill=round(sum(length for part, length in parts.items() if part not in paged)),
    )


def _ms(seconds: float) -> int:
    return round(seconds * 1e3)
