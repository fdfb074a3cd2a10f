"""What a migration will cost, computed from what was measured before it begins: no I/O, no clock.

The engine's own loop (`sending.Sender`) is played through with figures in place of pages. A round sends what the last
one left; meanwhile the guest writes as many *different* pages as it was seen to in that much time, which a working-set
curve tells and a mere rate does not: a guest that writes one page a million times leaves one page. ::

    first round:  every page with content
    round i+1:    W(time of round i) pages                    W: the curve
    stop:         what is left takes no longer than the downtime limit
    downtime:     that, without max-bandwidth, and what stopping, state and the handover take

The curve never falls, so rounds only ever get shorter; they end at a fixed point of pages left ↦ pages written
meanwhile. Whether that point fits the limit decides whether the migration converges. With auto-converge the guest runs
less and less, as the engine's own `AutoConverge` decides after every round, and the point moves.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sealift.vmm.migration.convergence import AutoConverge
from sealift.vmm.migration.dirtyrate import Sample
from sealift.vmm.migration.parameters import MAX_DOWNTIME_LIMIT_MS, Throttling
from sealift.vmm.migration.stats import PAGE_COST

_ROUNDS_LIMIT = 1000
"""More than any migration has: each of them is shorter than the one before by a page at least, or the last."""


class WorkingSet:
    """How many different pages a guest writes in how much time, as samples had it, up to `pages`.

    Between samples, and from nothing at no time at all, the curve is straight; behind the last one it goes on as it
    went there.
    """

    def __init__(self, samples: Sequence[Sample], pages: int) -> None:
        ordered = sorted(samples, key=lambda sample: sample.seconds)
        self._points = [(0.0, 0.0)] + [
            (sample.seconds, float(sample.pages)) for sample in ordered if sample.seconds > 0
        ]
        self._limit = pages

    def after(self, seconds: float) -> int:
        """Pages written in so much time."""
        before = self._points[0]
        slope = 0.0
        for point in self._points[1:]:
            slope = max(0.0, (point[1] - before[1]) / (point[0] - before[0])) if point[0] > before[0] else slope
            if seconds <= point[0]:
                return self._whole(before[1] + slope * (seconds - before[0]))
            before = point
        return self._whole(before[1] + slope * (seconds - before[0]))

    def _whole(self, pages: float) -> int:
        return min(self._limit, math.ceil(pages - 1e-9))


@dataclass(frozen=True, slots=True)
class Conditions:
    """Under what a migration takes place.

    Attributes:
        bytes_per_s: what way and cipher let through.
        downtime_limit_s: the guest is stopped when the rest should take no longer.
        standstill_s: how long it then stands still beside that: its vCPUs leave, state, verification, handover.
        setup_s: connecting, launching the receiver, exchanging keys.
        max_bandwidth: bytes a second that the user allows while the guest runs; 0 is no limit.
        throttling: how auto-converge slows the guest; None: it does not.
        within_s: how long all may take; endless if nobody cares.
    """

    bytes_per_s: float
    downtime_limit_s: float
    standstill_s: float = 0.0
    setup_s: float = 0.0
    max_bandwidth: int = 0
    throttling: Throttling | None = None
    within_s: float = math.inf

    @property
    def running_bytes_per_s(self) -> float:
        """What goes through while the guest runs."""
        return min(self.bytes_per_s, self.max_bandwidth) if self.max_bandwidth else self.bytes_per_s


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is to be expected; of a migration that does not converge, up to where it gets no further.

    Attributes:
        total_s: from the order to the guest's start there.
        transferred: bytes of the stream.
        rounds: with the last one, while the guest is stopped.
        downtime_s: how long the guest stands still.
        converges: whether the rest comes to fit the downtime limit.
        in_time: whether all of it fits the time that there is.
        throttle: per cent of its time that auto-converge takes from the guest at last.
    """

    total_s: float
    transferred: int
    rounds: int
    downtime_s: float
    converges: bool
    in_time: bool = True
    throttle: int = 0

    @property
    def suffices(self) -> bool:
        """Whether it is as its user wants it."""
        return self.converges and self.in_time


class Control(enum.StrEnum):
    """What could make a migration suffice: QEMU's names, but of the way, which is none of its parameters."""

    DOWNTIME_LIMIT = "downtime-limit"
    """ms."""
    CPU_THROTTLE_INITIAL = "cpu-throttle-initial"
    """Per cent, with capability auto-converge."""
    MAX_BANDWIDTH = "max-bandwidth"
    """Bytes a second."""
    MULTIFD_CHANNELS = "multifd-channels"
    """Channels, with capability multifd."""
    WAY = "x-sealift-way"
    """Bytes a second that the way would have to take: a faster link."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """A control that by itself makes it suffice, with the least value that does, and what it then costs."""

    control: Control
    value: int
    forecast: Forecast


def predict(first_pages: int, writes: WorkingSet, conditions: Conditions) -> Forecast:
    """Play a migration of a guest with so many pages of content through."""
    rate, throttling = conditions.running_bytes_per_s, conditions.throttling
    converge = None if throttling is None else AutoConverge(throttling)
    left, sent, elapsed, rounds, throttle = first_pages, 0, conditions.setup_s, 0, 0
    while True:
        seconds = left * PAGE_COST / rate
        rounds, sent, elapsed = rounds + 1, sent + left * PAGE_COST, elapsed + seconds
        before, left = left, writes.after(seconds * (100 - throttle) / 100)
        fits = left * PAGE_COST / rate <= conditions.downtime_limit_s
        if fits or rounds == _ROUNDS_LIMIT:
            break
        if left >= before and (throttling is None or throttle >= throttling.maximum):
            break
        if converge is not None:
            throttle = converge.after_round(before * PAGE_COST, left * PAGE_COST)
    downtime = left * PAGE_COST / conditions.bytes_per_s + conditions.standstill_s
    total = elapsed + downtime
    in_time = total <= conditions.within_s
    return Forecast(total, sent + left * PAGE_COST, rounds + 1, downtime, fits, in_time, throttle)


@dataclass(frozen=True, slots=True)
class Leeway:
    """What could be had beside what is.

    Attributes:
        throttling: what auto-converge would begin with.
        sealing: bytes a second at most, however fast the way is.
        channels: what the way takes with how many channels; more than there are.
    """

    throttling: Throttling
    sealing: float
    channels: Mapping[int, float] = field(default_factory=dict)


def remedies(first_pages: int, writes: WorkingSet, conditions: Conditions, leeway: Leeway) -> tuple[Remedy, ...]:
    """What would make a migration suffice that does not, each by itself; empty if nothing does."""

    def remedy(control: Control, low: int, high: int, change: _Change) -> Remedy | None:
        def attempt(value: int) -> Forecast:
            return predict(first_pages, writes, change(value))

        value = _least(lambda value: attempt(value).suffices, low, high)
        return None if value is None else Remedy(control, value, attempt(value))

    found = [remedy(*each) for each in _ranges(conditions, leeway)] + [
        Remedy(Control.MULTIFD_CHANNELS, count, predict(first_pages, writes, replace(conditions, bytes_per_s=rate)))
        for count, rate in sorted(leeway.channels.items())
    ]
    enough = [each for each in found if each is not None and each.forecast.suffices]
    return tuple({each.control: each for each in reversed(enough)}.values())[::-1]


_Change = Callable[[int], Conditions]


def _ranges(conditions: Conditions, leeway: Leeway) -> Iterator[tuple[Control, int, int, _Change]]:
    """Each control, the greatest value that is known not to do, the greatest there is, and what a value makes."""
    limit_ms, rate = int(conditions.downtime_limit_s * 1e3), conditions.bytes_per_s
    throttling = leeway.throttling
    slowed = throttling.initial - (conditions.throttling is None)
    yield (
        Control.DOWNTIME_LIMIT,
        limit_ms,
        MAX_DOWNTIME_LIMIT_MS,
        lambda value: replace(conditions, downtime_limit_s=value / 1e3),
    )
    yield (
        Control.CPU_THROTTLE_INITIAL,
        slowed,
        throttling.maximum,
        lambda value: replace(conditions, throttling=replace(throttling, initial=value)),
    )
    if conditions.max_bandwidth:
        yield (
            Control.MAX_BANDWIDTH,
            conditions.max_bandwidth,
            int(rate),
            lambda value: replace(conditions, max_bandwidth=value),
        )
    elif rate < leeway.sealing:
        yield Control.WAY, int(rate), int(leeway.sealing), lambda value: replace(conditions, bytes_per_s=float(value))


def _least(suffices: Callable[[int], bool], low: int, high: int) -> int | None:
    """The least value above `low` that suffices, if the highest does: more of it never makes things worse."""
    if high <= low or not suffices(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high
