"""How fast a guest writes: its dirty rate, and how many different pages it touches in how much time.

The platform counts (`sealift.wire.platform.StartWriteMeter`), beside the dirty logs that a migration clears, so nothing
of either is lost when both go on at once. The guest runs on: reading the logs takes each vCPU out of guest mode for a
moment, as every round of a migration does. Private pages are known here by their number alone.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from sealift.address import PAGE_SIZE
from sealift.errors import SealiftError, UserError, sentence
from sealift.vmm.machine import Machine
from sealift.vmm.migration.clock import Clock
from sealift.wire import platform as wire

LEAST_S: Final = 0.05
MOST_S: Final = 60.0
"""QEMU's own limits of calc-time (MIN_CALC_TIME_MS, MAX_CALC_TIME_MS in migration/dirtyrate.h)."""

_SHARES: Final = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Where a measurement looks, as parts of its time: rounds get shorter by about such factors."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Different pages written in the first `seconds` of a measurement, by plane."""

    seconds: float
    private_pages: int
    shared_pages: int

    @property
    def pages(self) -> int:
        """On both planes."""
        return self.private_pages + self.shared_pages


class DirtyRateStatus(enum.Enum):
    """QEMU's DirtyRateStatus (qapi/migration.json)."""

    UNSTARTED = "unstarted"
    MEASURING = "measuring"
    MEASURED = "measured"


@dataclass(frozen=True, slots=True)
class Measurement:
    """A measurement, or one that goes on.

    Attributes:
        status: how far it is.
        began: seconds since the epoch.
        seconds: how long it was to take.
        samples: what was found, in order of time; all of them when it is measured.
        error: why it came to nothing.
    """

    status: DirtyRateStatus = DirtyRateStatus.UNSTARTED
    began: int = 0
    seconds: float = 0.0
    samples: tuple[Sample, ...] = ()
    error: str | None = None

    @property
    def bytes_per_s(self) -> float | None:
        """The rate over all of its time; None while that is not known."""
        if self.status is not DirtyRateStatus.MEASURED or not self.samples:
            return None
        last = self.samples[-1]
        return last.pages * PAGE_SIZE / last.seconds


class Writes(Protocol):
    """Counts the pages that a guest writes."""

    def start(self) -> None:
        """From now on."""

    def read(self) -> tuple[int, int]:
        """Different pages since then, private and shared."""

    def stop(self) -> None:
        """No more."""


class MachineWrites:
    """Those of a machine: the platform counts the guest's, the shared plane here its devices'.

    A page that both write counts twice: the rate is never too low.
    """

    def __init__(self, machine: Machine) -> None:
        self._platform = machine.platform
        self._memory = machine.memory

    def start(self) -> None:
        """From now on."""
        self._platform.do(wire.StartWriteMeter())
        self._memory.start_device_meter()

    def read(self) -> tuple[int, int]:
        """Different pages since then."""
        metered = self._platform.request(wire.ReadWriteMeter(), wire.WritesMetered)
        return metered.private_pages, metered.shared_pages + self._memory.device_metered()

    def stop(self) -> None:
        """No more."""
        self._memory.stop_device_meter()
        self._platform.do(wire.StopWriteMeter())


def sample(writes: Writes, seconds: float, clock: Clock, wake: threading.Event) -> tuple[Sample, ...]:
    """Look for so long, several times; less if `wake` is set meanwhile.

    Raises:
        SealiftError: the guest has ended.
    """
    writes.start()
    try:
        began, samples = clock.monotonic(), []
        for share in _SHARES:
            if clock.wait(wake, began + share * seconds - clock.monotonic()):
                break
            private, shared = writes.read()
            samples.append(Sample(clock.monotonic() - began, private, shared))
    finally:
        writes.stop()
    return tuple(samples)


class DirtyRateMeter:
    """Measures one guest, one measurement at a time; any thread may look."""

    def __init__(self, clock: Clock, wall_clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._last = Measurement()
        self._thread: threading.Thread | None = None

    @property
    def last(self) -> Measurement:
        """The measurement that goes on, or else the last one."""
        return self._last

    def begin(self, writes: Writes, seconds: float) -> None:
        """Measure in a thread of its own; `last` says how it goes.

        Raises:
            UserError: a measurement goes on, or it is to take impossibly long.
        """
        self._claim(seconds)
        self._thread = threading.Thread(target=self._measure, args=(writes, seconds), name="dirty-rate", daemon=True)
        self._thread.start()

    def measure(self, writes: Writes, seconds: float) -> Measurement:
        """Measure, and wait for it; raises as `begin`."""
        self._claim(seconds)
        self._measure(writes, seconds)
        return self._last

    def close(self) -> None:
        """End a measurement that goes on."""
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def _claim(self, seconds: float) -> None:
        if not LEAST_S <= seconds <= MOST_S:
            raise UserError(f"calc-time is out of range[{LEAST_S * 1e3:.0f}ms, {MOST_S * 1e3:.0f}ms].")
        with self._lock:
            if self._last.status is DirtyRateStatus.MEASURING:
                raise UserError("the dirty rate is already being measured.")
            self._last = Measurement(DirtyRateStatus.MEASURING, int(self._wall_clock()), seconds)

    def _measure(self, writes: Writes, seconds: float) -> None:
        began = self._last.began
        ended = Measurement(DirtyRateStatus.UNSTARTED, error="a bug ended the measurement")
        try:
            samples = sample(writes, seconds, self._clock, self._wake)
            ended = Measurement(DirtyRateStatus.MEASURED, began, seconds, samples)
        except SealiftError as error:
            ended = Measurement(DirtyRateStatus.UNSTARTED, error=sentence(error))
        finally:
            self._last = ended
