"""Reset, clock and power: what Linux expects of a PC besides its real devices."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from sealift.errors import InternalError, StreamError
from sealift.vmm.devices.acpi_pm import PowerManagement
from sealift.vmm.devices.bus import PortBus
from sealift.vmm.devices.i8042 import KeyboardController
from sealift.vmm.devices.pause import PausePort
from sealift.vmm.devices.rtc import RealTimeClock

from .driver import Line


class Calls(list[str]):
    """Notes its calls."""

    def __call__(self) -> None:
        """Note one."""
        self.append("called")


# --- ports -----------------------------------------------------------------------------------------------------------


def test_a_port_that_nobody_answers_reads_as_ones_and_none_has_two_answers() -> None:
    reset = Calls()
    bus = PortBus((KeyboardController(reset), PausePort(lambda _: None)))
    assert bus.read(0x61, 2) == 0xFFFF
    bus.write(0x61, 1, 0xFE)
    assert not reset
    with pytest.raises(InternalError, match="both claim port 0x60"):
        PortBus((KeyboardController(reset), KeyboardController(reset)))


# --- keyboard controller ---------------------------------------------------------------------------------------------


def test_the_reset_command_alone_resets() -> None:
    reset = Calls()
    controller = KeyboardController(reset)
    controller.write(0x60, 1, 0xFE)
    controller.write(0x64, 1, 0x20)
    assert not reset
    controller.write(0x64, 1, 0xFE)
    assert len(reset) == 1


def test_linux_finds_no_keyboard_at_once_and_its_reboot_never_waits() -> None:
    """A buffer that is never empty ends its probing; an input buffer that is never full lets commands through."""
    controller = KeyboardController(Calls())
    for _ in range(17):
        status = controller.read(0x64, 1)
        assert status & 0x01
        assert not status & 0x02
        controller.read(0x60, 1)


# --- clock -----------------------------------------------------------------------------------------------------------


class Clock:
    """An RTC whose host's time is told."""

    def __init__(self, now: datetime) -> None:
        self.now = now.timestamp()
        self.line = Line()
        self.waiting: list[tuple[float, Callable[[], None]]] = []
        self.rtc = RealTimeClock(lambda: self.now, self.line, self._schedule)

    def _schedule(self, delay_s: float, call: Callable[[], None]) -> Callable[[], None]:
        entry = (self.now + delay_s, call)
        self.waiting.append(entry)
        return lambda: self.waiting.remove(entry) if entry in self.waiting else None

    def pass_by(self, seconds: float) -> None:
        """Time goes on, and what is due is called."""
        self.now += seconds
        for entry in [entry for entry in self.waiting if entry[0] <= self.now]:
            self.waiting.remove(entry)
            entry[1]()

    def set_alarm(self, hours: int, minutes: int, seconds: int) -> None:
        """As Linux does it."""
        self.write(0x0B, self.read(0x0B) & ~0x20)
        for index, value in zip((5, 3, 1), (hours, minutes, seconds), strict=True):
            self.write(index, value)
        self.write(0x0B, self.read(0x0B) | 0x20)

    def read(self, index: int) -> int:
        """A cell."""
        self.rtc.write(0x70, 1, index)
        return self.rtc.read(0x71, 1)

    def write(self, index: int, value: int) -> None:
        """A cell."""
        self.rtc.write(0x70, 1, index)
        self.rtc.write(0x71, 1, value)

    def time(self) -> list[int]:
        """Century, year, month, day, weekday, hour, minute, second."""
        return [self.read(index) for index in (0x32, 9, 8, 7, 6, 4, 2, 0)]

    def set(self, *cells: int) -> None:
        """Year to second, as Linux does it."""
        control = self.read(0x0B)
        self.write(0x0B, control | 0x80)
        for index, value in zip((9, 8, 7, 4, 2, 0), cells, strict=True):
            self.write(index, value)
        self.write(0x0B, control)


@pytest.fixture
def clock() -> Clock:
    return Clock(datetime(2026, 12, 31, 23, 59, 58, tzinfo=UTC))


def test_linux_finds_a_clock_of_24_hours_with_power_that_is_never_in_an_update(clock: Clock) -> None:
    clock.write(0x0A, 0xA6)
    assert [clock.read(index) for index in (0x0A, 0x0B, 0x0C, 0x0D)] == [0x26, 0x02, 0, 0x80]


def test_the_time_is_the_hosts_in_bcd_and_goes_on(clock: Clock) -> None:
    assert clock.time() == [0x20, 0x26, 0x12, 0x31, 5, 0x23, 0x59, 0x58]
    clock.now += 2
    assert clock.time() == [0x20, 0x27, 0x01, 0x01, 6, 0, 0, 0]


def test_binary_and_12_hours_can_be_asked_for(clock: Clock) -> None:
    clock.write(0x0B, 0x04)
    assert clock.time() == [20, 26, 12, 31, 5, 11 | 0x80, 59, 58]
    clock.now += 3602
    assert clock.read(4) == 12 + 1 - 12


def test_a_time_that_is_set_goes_on_from_there(clock: Clock) -> None:
    clock.set(0x30, 0x02, 0x28, 0x12, 0x00, 0x00)
    clock.now += 86_400
    assert clock.time() == [0x20, 0x30, 0x03, 0x01, 6, 0x12, 0, 0]


def test_a_clock_that_is_held_stands_still(clock: Clock) -> None:
    clock.write(0x0B, 0x82)
    clock.now += 10
    assert clock.read(0) == 0x58


def test_what_is_no_date_sets_nothing(clock: Clock) -> None:
    before = clock.time()
    clock.set(0x30, 0x13, 0x40, 0x12, 0x00, 0x00)
    assert clock.time() == before


def test_one_cell_can_be_set_while_the_clock_runs(clock: Clock) -> None:
    clock.write(0x02, 0x10)
    assert clock.time()[5:] == [0x23, 0x10, 0x58]


def test_cmos_memory_and_the_guests_offset_travel(clock: Clock) -> None:
    clock.write(0x40, 0xAB)
    clock.set(0x30, 0x02, 0x28, 0x12, 0x00, 0x00)
    moved = Clock(datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC))
    moved.rtc.restore(clock.rtc.save())
    assert moved.read(0x40) == 0xAB
    assert moved.time()[1:] == [0x30, 0x02, 0x28, 5, 0x12, 0, 1]


def test_a_clock_state_that_no_clock_has_is_refused(clock: Clock) -> None:
    clock.rtc._offset_s = float("nan")
    for state in (clock.rtc.save(), b""):
        with pytest.raises(StreamError):
            RealTimeClock(lambda: 0).restore(state)


def test_an_alarm_rings_once_at_its_time_and_names_itself(clock: Clock) -> None:
    clock.set_alarm(0x00, 0x00, 0x00)
    clock.pass_by(1.5)
    assert clock.line.pulses == 0
    clock.pass_by(0.5)
    assert clock.line.pulses == 1
    assert [clock.read(0x0C), clock.read(0x0C)] == [0xA0, 0]
    clock.pass_by(86_399)
    assert clock.line.pulses == 1
    clock.pass_by(1)
    assert clock.line.pulses == 2


def test_an_alarm_may_leave_parts_open(clock: Clock) -> None:
    clock.set_alarm(0xFF, 0xFF, 0x05)
    clock.pass_by(6)
    assert clock.line.pulses == 0
    clock.pass_by(1)
    clock.pass_by(60)
    assert clock.line.pulses == 2


def test_an_alarm_that_is_disabled_or_at_no_time_never_rings(clock: Clock) -> None:
    clock.set_alarm(0x00, 0x00, 0x00)
    ringing = clock.waiting[0][1]
    clock.write(0x0B, 0x02)
    assert not clock.waiting
    clock.now += 10
    ringing()
    clock.set_alarm(0x99, 0x99, 0x99)
    assert not clock.waiting
    assert clock.line.pulses == 0


def test_an_alarm_follows_the_guests_own_time(clock: Clock) -> None:
    clock.set_alarm(0x12, 0x00, 0x10)
    clock.set(0x30, 0x02, 0x28, 0x12, 0x00, 0x00)
    clock.pass_by(10)
    assert clock.line.pulses == 1


def test_an_alarm_whose_time_comes_on_the_way_rings_at_the_target(clock: Clock) -> None:
    clock.set_alarm(0x00, 0x00, 0x00)
    clock.rtc.quiesce()
    clock.pass_by(5)
    assert clock.line.pulses == 0
    moved = Clock(datetime(2027, 1, 1, 0, 0, 3, tzinfo=UTC))
    moved.rtc.restore(clock.rtc.save())
    assert not moved.waiting
    moved.rtc.resume()
    moved.pass_by(0)
    assert moved.line.pulses == 1
    unnoticed = Clock(datetime(2027, 1, 1, 0, 0, 4, tzinfo=UTC))
    unnoticed.rtc.restore(moved.rtc.save())
    unnoticed.rtc.resume()
    assert unnoticed.line.pulses == 1


def test_in_real_time_an_alarm_rings_by_itself(clock: Clock) -> None:
    rtc = RealTimeClock(lambda: clock.now, clock.line)
    for index, value in ((5, 0xFF), (3, 0xFF), (1, 0xFF), (0x0B, 0x22)):
        rtc.write(0x70, 1, index)
        rtc.write(0x71, 1, value)
        clock.now += 0.9 if index == 1 else 0
    rtc.quiesce()
    clock.now += 1
    rtc.resume()
    clock.line.wait(1)
    rtc.quiesce()


# --- power -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def power() -> tuple[PowerManagement, Calls, Line]:
    off, line = Calls(), Line()
    return PowerManagement(off, line), off, line


def test_the_machine_is_in_acpi_mode_whatever_is_written(power: tuple[PowerManagement, Calls, Line]) -> None:
    management, off, _ = power
    assert management.read(0x604, 2) == 1
    management.write(0x604, 2, 0)
    assert management.read(0x604, 2) == 1
    assert not off


def test_only_s5_with_sleep_enable_switches_off(power: tuple[PowerManagement, Calls, Line]) -> None:
    management, off, _ = power
    management.write(0x604, 2, 5 << 10 | 1)
    management.write(0x604, 2, 1 << 10 | 1 << 13)
    assert not off
    management.write(0x604, 2, 5 << 10 | 1 << 13)
    assert len(off) == 1
    assert management.read(0x604, 2) == 5 << 10 | 1
    management.write(0x605, 1, 5 << 2 | 1 << 5)
    assert len(off) == 2


def test_the_power_button_is_an_event_until_it_is_cleared(power: tuple[PowerManagement, Calls, Line]) -> None:
    management, _, line = power
    management.press_power_button()
    assert line.pulses == 0
    management.write(0x602, 2, 0x0100)
    assert line.pulses == 1
    assert management.read(0x600, 4) == 0x0100_0100
    management.write(0x600, 2, 0x0001)
    assert management.read(0x600, 2) == 0x0100
    management.write(0x600, 2, 0x0100)
    assert management.read(0x600, 2) == 0
    management.press_power_button()
    assert line.pulses == 2


def test_an_event_is_raised_again_after_a_migration(power: tuple[PowerManagement, Calls, Line]) -> None:
    management, _, _ = power
    management.write(0x602, 2, 0x0100)
    management.press_power_button()
    line = Line()
    moved = PowerManagement(Calls(), line)
    moved.restore(management.save())
    assert moved.read(0x600, 4) == 0x0100_0100
    moved.resume()
    assert line.pulses == 1


# --- state that there is not -----------------------------------------------------------------------------------------


def test_devices_without_state_take_none() -> None:
    for device in (KeyboardController(Calls()), PausePort(lambda _: None)):
        assert device.save() == b""
        device.restore(b"")
        device.quiesce()
        device.resume()
        with pytest.raises(StreamError):
            device.restore(b"x")
