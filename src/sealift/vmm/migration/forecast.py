"""What a migration will cost, computed from what was measured before it begins: no I/O, no clock.

The engine's own loop (`sending.Sender`) is played through with figures in place of pages. A round sends what the last
one left; meanwhile the guest writes as many *different* pages as it was seen to in that much time, which a working-set
curve tells and a mere rate does not: a guest that writes one page a million times leaves one page. ::

    first round:  every page with content
    round i+1:    W(time of round i) pages                    W: the curve
    stop:         what is left takes no longer than the downtime limit
    downtime:     that, the target's checks, and the commit's round trips

The curve never falls, so rounds only ever get shorter; they end at a fixed point of pages left ↦ pages written
meanwhile. Whether that point fits the limit decides whether the migration converges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sealift.vmm.migration.dirtyrate import Sample
from sealift.vmm.migration.parameters import MAX_DOWNTIME_LIMIT_MS
from sealift.vmm.migration.stats import PAGE_COST

STOP_S: Final = 0.02
"""The part of downtime that no page and no wire causes: vCPUs leave, state is sealed, opened and verified."""

COMMIT_TRIPS: Final = 2
"""Round trips while the guest is stopped: the end of the stream to PREPARED, then FINAL to STARTED."""

THROTTLES: Final = tuple(range(20, 100, 10))
"""Per cent of its time that auto-converge takes from the guest: cpu-throttle-initial, then by -increment."""

_ROUNDS_LIMIT = 1000
"""More than any migration has: each of them is shorter than the one before by a page at least, or the last."""

_FASTER = 100
"""How many times the present rate a remedy may ask for: a 1 Gbit/s link could become one of 100."""


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
        bytes_per_s: what way, cipher and max-bandwidth let through while the guest runs.
        round_trip_s: there and back.
        downtime_limit_s: the guest is stopped when the rest should take no longer.
        within_s: how long it may take in all; endless if nobody cares.
        throttle: part of its time that is taken from the guest, 0 to 1.
        setup_s: connecting, launching the receiver, exchanging keys.
    """

    bytes_per_s: float
    round_trip_s: float
    downtime_limit_s: float
    within_s: float = math.inf
    throttle: float = 0.0
    setup_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is to be expected; of a migration that does not converge, up to where it gets no further.

    Attributes:
        total_s: from the order to the guest's start there.
        transferred: bytes of the stream.
        rounds: with the last one, while the guest is stopped.
        downtime_s: how long the guest stands still.
        converges: whether the rest comes to fit the downtime limit, and all of it the time that there is.
    """

    total_s: float
    transferred: int
    rounds: int
    downtime_s: float
    converges: bool


@dataclass(frozen=True, slots=True)
class Remedy:
    """A control that would make it converge, with the least value that does, and what it then costs.

    `control` is QEMU's name of it; `value` is ms, per cent, or bytes a second of the way:
    more channels, a faster link.
    """

    control: str
    value: int
    forecast: Forecast


def predict(first_pages: int, writes: WorkingSet, conditions: Conditions) -> Forecast:
    """Play a migration of a guest with so many pages of content through."""
    rate = conditions.bytes_per_s
    running = 1.0 - conditions.throttle
    left, sent, elapsed, rounds = first_pages, 0, conditions.setup_s, 0
    while True:
        seconds = left * PAGE_COST / rate
        rounds, sent, elapsed = rounds + 1, sent + left * PAGE_COST, elapsed + seconds
        before, left = left, writes.after(seconds * running)
        rest_s = left * PAGE_COST / rate
        if rest_s <= conditions.downtime_limit_s:
            fits = True
            break
        if left >= before or rounds == _ROUNDS_LIMIT:
            fits = False
            break
    downtime = rest_s + STOP_S + COMMIT_TRIPS * conditions.round_trip_s
    total = elapsed + downtime
    return Forecast(total, sent + left * PAGE_COST, rounds + 1, downtime, fits and total <= conditions.within_s)


def remedies(first_pages: int, writes: WorkingSet, conditions: Conditions) -> tuple[Remedy, ...]:
    """What would make a migration converge that does not, each by itself; empty if nothing does."""

    def attempt(changed: Conditions) -> Forecast:
        return predict(first_pages, writes, changed)

    found = []
    for control, low, high, change in (
        ("downtime-limit", int(conditions.downtime_limit_s * 1e3), MAX_DOWNTIME_LIMIT_MS, _with_limit),
        ("auto-converge", 0, len(THROTTLES), _with_throttle),
        ("max-bandwidth", int(conditions.bytes_per_s), int(conditions.bytes_per_s) * _FASTER, _with_rate),
    ):
        value = _least(lambda value, change=change: attempt(change(conditions, value)).converges, low, high)  # type: ignore[misc]  # binds this very change
        if value is not None:
            shown = THROTTLES[value - 1] if change is _with_throttle else value
            found.append(Remedy(control, shown, attempt(change(conditions, value))))
    return tuple(found)


def _with_limit(conditions: Conditions, milliseconds: int) -> Conditions:
    return replace(conditions, downtime_limit_s=milliseconds / 1e3)


def _with_throttle(conditions: Conditions, step: int) -> Conditions:
    return replace(conditions, throttle=THROTTLES[step - 1] / 100)


def _with_rate(conditions: Conditions, bytes_per_s: int) -> Conditions:
    return replace(conditions, bytes_per_s=float(bytes_per_s))


def _least(converges: Callable[[int], bool], low: int, high: int) -> int | None:
    """The least value above `low` that converges, if the highest does: more of it never makes things worse."""
    if high <= low or not converges(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if converges(middle) else (middle, high)
    return high
