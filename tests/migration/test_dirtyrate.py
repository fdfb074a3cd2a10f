"""The dirty rate, counted without disturbing anybody: with a guest that is played, and with guest memory itself."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.errors import LostError, UserError
from sealift.pageset import PageSet
from sealift.silicon.memory.guest_memory import GuestMemory
from sealift.silicon.memory.xts import KEY_BYTES
from sealift.vmm.migration.dirtyrate import DirtyRateMeter, DirtyRateStatus

LAYOUT = RamLayout((RamBlock("pc.ram", Gpa(0), 64 * PAGE_SIZE),))


class Clock:
    """Time that passes by being waited for."""

    now = 100.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now

    def wait(self, wake: threading.Event, seconds: float) -> bool:
        """Pass the time, unless somebody is in a hurry."""
        self.now += max(0.0, seconds)
        return wake.is_set()


class Steady:
    """A guest that writes ten new private pages a second and one shared one, and may be gone."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.log: list[str] = []
        self.gone = False

    def start(self) -> None:
        """See `Writes`."""
        self.log.append("start")
        self.began = self.clock.now

    def read(self) -> tuple[int, int]:
        """See `Writes`."""
        if self.gone:
            raise LostError("the platform process is gone")
        passed = self.clock.now - self.began
        return round(passed * 10), round(passed)

    def stop(self) -> None:
        """See `Writes`."""
        self.log.append("stop")


def test_a_measurement_is_a_curve_over_shares_of_its_time() -> None:
    clock = Clock()
    meter, writes = DirtyRateMeter(clock, lambda: 12345.6), Steady(clock)
    measured = meter.measure(writes, 16.0)
    assert [sample.seconds for sample in measured.samples] == [1, 2, 4, 8, 16]
    assert [sample.private_pages for sample in measured.samples] == [10, 20, 40, 80, 160]
    assert measured.bytes_per_s == pytest.approx(11 * PAGE_SIZE)
    assert (measured.began, measured.status) == (12345, DirtyRateStatus.MEASURED)
    assert writes.log == ["start", "stop"]


def test_a_guest_that_ends_meanwhile_leaves_a_reason_and_no_rate() -> None:
    clock = Clock()
    meter, writes = DirtyRateMeter(clock), Steady(clock)
    writes.gone = True
    measured = meter.measure(writes, 1.0)
    assert measured.status is DirtyRateStatus.UNSTARTED
    assert measured.bytes_per_s is None
    assert measured.error == "the platform process is gone"
    assert writes.log == ["start", "stop"]
    writes.gone = False
    assert meter.measure(writes, 1.0).status is DirtyRateStatus.MEASURED


@pytest.mark.parametrize("seconds", [0.0, 0.049, 60.1, -1.0])
def test_a_measurement_takes_between_50_ms_and_a_minute(seconds: float) -> None:
    clock = Clock()
    with pytest.raises(UserError, match="out of range"):
        DirtyRateMeter(clock).measure(Steady(clock), seconds)


def test_the_meter_takes_nothing_from_the_dirty_sets_and_they_take_nothing_from_it() -> None:
    memory = GuestMemory(LAYOUT, bytes(range(KEY_BYTES)))
    try:
        memory.write_private(0, b"before")
        memory.start_meter()
        memory.write_private(3 * PAGE_SIZE, b"meanwhile")
        memory.convert(8, 2, to_shared=True)
        assert memory.read_meter() == (1, 2)
        assert set(memory.take_unsent().numbers().tolist()) == {0, 3}
        assert set(memory.take_shared_dirty().numbers().tolist()) == {8, 9}
        memory.write_private(3 * PAGE_SIZE, b"again")
        assert memory.read_meter() == (1, 2), "a page counts once"
        memory.put_back(PageSet.of(64, np.array([20], np.uint64)))
        assert memory.read_meter() == (1, 2), "what is still to be sent was not written"
        assert memory.count_unsent() == 2
        memory.stop_meter()
        memory.write_private(0, b"after")
        assert memory.read_meter() == (0, 0)
    finally:
        memory.close()
