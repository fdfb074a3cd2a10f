"""The MC146818 real-time clock and its CMOS memory: the time of day, as UTC, for Linux's rtc_cmos.

Registers and bits as in Motorola's data sheet. The guest's clock is the host's plus an offset, which changes only when
the guest sets its clock; so it goes on by itself, also over a migration. An update takes no time: UIP is never set. The
clock makes no interrupts; a guest that enables them waits for one in vain, as it does for a clock whose line is not
connected, so the guest's tables must not name one.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec

from sealift.errors import StreamError
from sealift.launch.microvm import RTC_PORT
from sealift.wire.packed import unpack

_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR, _CENTURY = 0, 2, 4, 6, 7, 8, 9, 0x32
_TIME = (_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR, _CENTURY)
_STATUS_A, _STATUS_B, _STATUS_C, _STATUS_D = range(0x0A, 0x0E)
_UPDATE_IN_PROGRESS = 0x80
_DIVIDER_32KHZ = 0x26
_SET, _BINARY, _24_HOURS = 0x80, 0x04, 0x02
_VALID_RAM_AND_TIME = 0x80
_PM = 0x80
_SIZE = 128

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST_OFFSET_S = 20_000 * 366 * 86_400
"""No clock of four-digit years can be further from another; the years themselves are checked where they are used."""


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    index: int
    offset_s: float
    cells: bytes


class RealTimeClock:
    """`now` gives the host's time in seconds since 1970, UTC."""

    name = "rtc"
    version = 1
    ports = range(RTC_PORT, RTC_PORT + 2)

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._offset_s = 0.0
        self._index = 0
        self._cells = bytearray(_SIZE)  # the time's cells count only while SET holds the clock
        self._cells[_STATUS_A], self._cells[_STATUS_B] = _DIVIDER_32KHZ, _24_HOURS

    def read(self, port: int, size: int) -> int:  # noqa: ARG002  # byte registers
        """The guest reads the cell it chose; the port that chooses cannot be read."""
        if port == RTC_PORT:
            return 0xFF
        index = self._index
        if index in _TIME and not self._cells[_STATUS_B] & _SET:
            return self._time()[index]
        match index:
            case 0x0C:
                return 0
            case 0x0D:
                return _VALID_RAM_AND_TIME
            case _:
                return self._cells[index]

    def write(self, port: int, size: int, value: int) -> None:  # noqa: ARG002  # byte registers
        """The guest chooses a cell (bit 7 is the NMI mask), or writes it."""
        if port == RTC_PORT:
            self._index = value & 0x7F
            return
        value &= 0xFF
        match self._index:
            case 0x0A:
                self._cells[_STATUS_A] = value & ~_UPDATE_IN_PROGRESS
            case 0x0B:
                self._write_b(value)
            case 0x0C | 0x0D:
                pass
            case index if index in _TIME and not self._cells[_STATUS_B] & _SET:
                self._hold()
                self._cells[index] = value
                self._release()
            case index:
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
        hours = self._decoded(_HOURS) if self._status_b & _24_HOURS else self._decoded_12_hours()
        try:
            date = datetime(year, self._decoded(_MONTH), self._decoded(_DAY), tzinfo=UTC)
        except ValueError:
            return
        seconds = (hours * 60 + self._decoded(_MINUTES)) * 60 + self._decoded(_SECONDS)
        self._offset_s = (date - _EPOCH).total_seconds() + seconds - self._now()

    def _time(self) -> dict[int, int]:
        """What the time's cells hold now, in the encoding that status B asks for."""
        try:
            now = _EPOCH + timedelta(seconds=self._now() + self._offset_s)
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

    def _decoded_12_hours(self) -> int:
        cell = self._cells[_HOURS]
        return self._number(cell & ~_PM) % 12 + (12 if cell & _PM else 0)

    # --- state -------------------------------------------------------------------------------------------------

    def save(self) -> bytes:
        """The cells, and how far the guest's clock is from the host's."""
        return msgspec.msgpack.encode(_State(self._index, self._offset_s, bytes(self._cells)))

    def restore(self, state: bytes) -> None:
        """Load `save`'s state."""
        loaded = unpack(state, _State, "the clock's state")
        if len(loaded.cells) != _SIZE or not abs(loaded.offset_s) <= _LONGEST_OFFSET_S:
            raise StreamError("the clock's state is not one that such a clock can have")
        self._index, self._offset_s, self._cells = loaded.index & 0x7F, loaded.offset_s, bytearray(loaded.cells)
        self._cells[_STATUS_A] &= ~_UPDATE_IN_PROGRESS

    def quiesce(self) -> None:
        """Nothing is ever underway."""

    def resume(self) -> None:
        """The clock never stopped."""
