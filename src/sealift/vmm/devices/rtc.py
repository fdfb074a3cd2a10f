"""The MC146818 real-time clock and its CMOS memory: the time of day, as UTC, for Linux's rtc_cmos.

Registers and bits as in Motorola's data sheet. The guest's clock is the host's plus an offset, which changes only when
the guest sets its clock; so it goes on by itself, also over a migration. An update takes no time: UIP is never set.

Of the three interrupts there is the alarm: Linux makes its own "every second" of it, for which hwclock waits. An alarm
whose time comes while the guest is on its way to another host rings when it goes on there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import msgspec

from sealift.errors import StreamError
from sealift.launch.microvm import RTC_PORT
from sealift.vmm.devices.interface import Interrupt, no_interrupt
from sealift.wire.packed import unpack

Schedule: TypeAlias = Callable[[float, Callable[[], None]], Callable[[], None]]
"""Calls a function after so many seconds, from another thread, unless what it returned is called before."""

_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR, _CENTURY = 0, 2, 4, 6, 7, 8, 9, 0x32
_TIME = (_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR, _CENTURY)
_STATUS_A, _STATUS_B, _STATUS_C, _STATUS_D = range(0x0A, 0x0E)
_UPDATE_IN_PROGRESS = 0x80
_DIVIDER_32KHZ = 0x26
_SECONDS_ALARM, _MINUTES_ALARM, _HOURS_ALARM, _ANY = 1, 3, 5, 0xC0
_SET, _ALARM_ENABLED, _BINARY, _24_HOURS = 0x80, 0x20, 0x04, 0x02
_ALARM_RANG = 0x80 | 0x20  # IRQF and AF
_VALID_RAM_AND_TIME = 0x80
_PM = 0x80
_SIZE = 128

_LONGEST_WAIT_S = 86_400.0
"""No alarm is further away; whatever a stream says, a thread does not wait for longer before it looks again."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST_OFFSET_S = 20_000 * 366 * 86_400
"""No clock of four-digit years can be further from another; the years themselves are checked where they are used."""


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    index: int
    offset_s: float
    due_s: int | None
    cells: bytes


def after(delay_s: float, call: Callable[[], None]) -> Callable[[], None]:
    """The `Schedule` of real time."""
    timer = threading.Timer(delay_s, call)
    timer.daemon = True
    timer.start()
    return timer.cancel


class RealTimeClock:
    """`now` gives the host's time in seconds since 1970, UTC; `schedule` is how it waits for an alarm."""

    name = "rtc"
    version = 1
    ports = range(RTC_PORT, RTC_PORT + 2)

    def __init__(
        self, now: Callable[[], float], interrupt: Interrupt = no_interrupt, schedule: Schedule = after
    ) -> None:
        self._now = now
        self._interrupt = interrupt
        self._schedule = schedule
        self._lock = threading.RLock()  # an alarm rings on a thread of its own
        self._due_s: int | None = None  # the guest's time of the next alarm
        self._cancel: Callable[[], None] | None = None
        self._paused = False
        self._offset_s = 0.0
        self._index = 0
        self._cells = bytearray(_SIZE)  # the time's cells count only while SET holds the clock
        self._cells[_STATUS_A], self._cells[_STATUS_B] = _DIVIDER_32KHZ, _24_HOURS

    def read(self, port: int, size: int) -> int:  # noqa: ARG002  # byte registers
        """The guest reads the cell it chose; the port that chooses cannot be read."""
        if port == RTC_PORT:
            return 0xFF
        with self._lock:
            return self._read(self._index)

    def _read(self, index: int) -> int:
        if index in _TIME and not self._cells[_STATUS_B] & _SET:
            return self._time()[index]
        match index:
            case 0x0C:
                rang, self._cells[_STATUS_C] = self._cells[_STATUS_C], 0
                return rang
            case 0x0D:
                return _VALID_RAM_AND_TIME
            case _:
                return self._cells[index]

    def write(self, port: int, size: int, value: int) -> None:  # noqa: ARG002  # byte registers
        """The guest chooses a cell (bit 7 is the NMI mask), or writes it."""
        if port == RTC_PORT:
            self._index = value & 0x7F
            return
        with self._lock:
            self._write(self._index, value & 0xFF)
            if self._index < _STATUS_A or self._index in (_STATUS_B, _CENTURY):
                self._set_alarm()

    def _write(self, index: int, value: int) -> None:
        match index:
            case 0x0A:
                self._cells[_STATUS_A] = value & ~_UPDATE_IN_PROGRESS
            case 0x0B:
                self._write_b(value)
            case 0x0C | 0x0D:
                pass
            case _ if index in _TIME and not self._cells[_STATUS_B] & _SET:
                self._hold()
                self._cells[index] = value
                self._release()
            case _:
                self._cells[index] = value

    # --- time ----------------------------------------------------------------------------------------------------

    def _write_b(self, value: int) -> None:
        held, holds = self._cells[_STATUS_B] & _SET, value & _SET
        if holds and not held:
            self._hold()
        if held and not holds:
            self._release()
        self._cells[_STATUS_B] = value

    def _hold(self) -> None:
        """Leave the time in its cells, where the guest changes it piece by piece."""
        for index, value in self._time().items():
            self._cells[index] = value

    def _release(self) -> None:
        """Go on from the time in the cells; what is no time at all sets nothing."""
        year = 100 * self._decoded(_CENTURY) + self._decoded(_YEAR)
        try:
            date = datetime(year, self._decoded(_MONTH), self._decoded(_DAY), tzinfo=UTC)
        except ValueError:
            return
        seconds = (self._decoded_hours(_HOURS) * 60 + self._decoded(_MINUTES)) * 60 + self._decoded(_SECONDS)
        self._offset_s = (date - _EPOCH).total_seconds() + seconds - self._now()

    def _guest_now(self) -> float:
        return self._now() + self._offset_s

    def _time(self) -> dict[int, int]:
        """What the time's cells hold now, in the encoding that status B asks for."""
        try:
            now = _EPOCH + timedelta(seconds=self._guest_now())
        except OverflowError:
            now = _EPOCH
        hours = now.hour if self._status_b & _24_HOURS else now.hour % 12 or 12
        weekday = now.isoweekday() % 7 + 1  # Sunday is 1
        fields = (now.second, now.minute, hours, weekday, now.day, now.month, now.year % 100, now.year // 100)
        cells = dict(zip(_TIME, map(self._encoded, fields), strict=True))
        if not self._status_b & _24_HOURS and now.hour >= 12:
            cells[_HOURS] |= _PM
        return cells

    @property
    def _status_b(self) -> int:
        return self._cells[_STATUS_B]

    def _encoded(self, number: int) -> int:
        return number if self._status_b & _BINARY else number // 10 << 4 | number % 10

    def _decoded(self, index: int) -> int:
        return self._number(self._cells[index])

    def _number(self, cell: int) -> int:
        return cell if self._status_b & _BINARY else (cell >> 4) * 10 + (cell & 0x0F)

    def _decoded_hours(self, index: int) -> int:
        cell = self._cells[index]
        if self._status_b & _24_HOURS:
            return self._number(cell)
        return self._number(cell & ~_PM) % 12 + (12 if cell & _PM else 0)

    # --- the alarm -------------------------------------------------------------------------------------------------

    def _set_alarm(self) -> None:
        """What the alarm depends on has changed."""
        self._due_s = self._next_alarm() if self._alarm_enabled else None
        self._wait()

    @property
    def _alarm_enabled(self) -> bool:
        return self._status_b & (_ALARM_ENABLED | _SET) == _ALARM_ENABLED

    def _next_alarm(self) -> int | None:
        """The guest's next time, from the coming second on, that fits the alarm; None if there is none in a day."""
        soonest = int(self._guest_now() // 1) + 1
        hours = self._fits(_HOURS_ALARM, 24, self._decoded_hours)
        minutes = self._fits(_MINUTES_ALARM, 60, self._decoded)
        seconds = self._fits(_SECONDS_ALARM, 60, self._decoded)
        for minute in range(soonest // 60, soonest // 60 + 24 * 60 + 1):
            if minute % 60 in minutes and minute // 60 % 24 in hours:
                for second in range(max(soonest, minute * 60), minute * 60 + 60):
                    if second % 60 in seconds:
                        return second
        return None

    def _fits(self, index: int, count: int, decoded: Callable[[int], int]) -> Container[int]:
        return range(count) if self._cells[index] & _ANY == _ANY else (decoded(index),)

    def _wait(self) -> None:
        if self._cancel is not None:
            self._cancel()
            self._cancel = None
        if self._due_s is not None and not self._paused:
            left = max(0.0, self._due_s - self._guest_now())
            self._cancel = self._schedule(min(left, _LONGEST_WAIT_S), self._ring)

    def _ring(self) -> None:
        with self._lock:
            if self._due_s is None or self._paused:
                return  # it was taken back when it was about to ring
            if self._guest_now() >= self._due_s:
                self._cells[_STATUS_C] |= _ALARM_RANG
                self._interrupt()
                self._due_s = self._next_alarm()
            self._wait()

    # --- state -------------------------------------------------------------------------------------------------

    def save(self) -> bytes:
        """The cells, how far the guest's clock is from the host's, and when it is to ring."""
        with self._lock:
            state = _State(self._index, self._offset_s, self._due_s, bytes(self._cells))
        return msgspec.msgpack.encode(state)

    def restore(self, state: bytes) -> None:
        """Load `save`'s state."""
        self.quiesce()
        loaded = unpack(state, _State, "the clock's state")
        if len(loaded.cells) != _SIZE or not abs(loaded.offset_s) <= _LONGEST_OFFSET_S:
            raise StreamError("the clock's state is not one that such a clock can have")
        with self._lock:
            self._index, self._offset_s, self._cells = loaded.index & 0x7F, loaded.offset_s, bytearray(loaded.cells)
            self._due_s = loaded.due_s if self._alarm_enabled else None
            self._cells[_STATUS_A] &= ~_UPDATE_IN_PROGRESS

    def quiesce(self) -> None:
        """No alarm rings; the clock goes on."""
        with self._lock:
            self._paused = True
            self._wait()

    def resume(self) -> None:
        """An alarm that is over rings at once; one that rang and was not noticed does so again."""
        with self._lock:
            self._paused = False
            if self._cells[_STATUS_C] & _ALARM_RANG:
                self._interrupt()
            self._wait()
