"""A forecast is judged by a guest that is simulated page by page, under the engine's own loop."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealift.vmm.migration.convergence import AutoConverge
from sealift.vmm.migration.dirtyrate import Sample
from sealift.vmm.migration.forecast import Conditions, Control, Forecast, Leeway, WorkingSet, predict, remedies
from sealift.vmm.migration.parameters import Throttling
from sealift.vmm.migration.stats import PAGE_COST

PAGES = 20_000
QUIET = Conditions(bytes_per_s=PAGE_COST * 10_000, downtime_limit_s=0.1)
"""Ten thousand pages a second."""

LEEWAY = Leeway(Throttling(), sealing=PAGE_COST * 100_000)


class SimulatedGuest:
    """Writes `rate` pages a second: nine in ten of them within a hot set, the others anywhere."""

    def __init__(self, rate: int, hot: int) -> None:
        self._random = random.Random(5)  # a guest, not a key
        self._rate, self._hot = rate, hot
        self.dirty: set[int] = set()

    def run(self, seconds: float) -> None:
        """Write for so long."""
        for _ in range(round(self._rate * seconds)):
            limit = self._hot if self._random.random() < 0.9 else PAGES
            self.dirty.add(self._random.randrange(limit))

    def samples(self, *moments: float) -> Iterator[Sample]:
        """What a meter sees at these moments."""
        self.dirty.clear()
        passed = 0.0
        for moment in moments:
            self.run(moment - passed)
            passed = moment
            yield Sample(moment, len(self.dirty), 0)


def migrate(guest: SimulatedGuest, conditions: Conditions) -> tuple[float, int, int]:
    """Move it as the engine does: seconds of the rest, pages sent, rounds; gives up after a hundred rounds."""
    guest.dirty = set(range(PAGES))
    converge = AutoConverge(conditions.throttling or Throttling())
    sent = rounds = 0
    while True:
        left = len(guest.dirty)
        guest.dirty = set()
        guest.run(left * PAGE_COST / conditions.bytes_per_s * (100 - converge.percentage) / 100)
        sent, rounds = sent + left, rounds + 1
        rest_s = len(guest.dirty) * PAGE_COST / conditions.bytes_per_s
        if rest_s <= conditions.downtime_limit_s or rounds == 100:
            return rest_s, sent + len(guest.dirty), rounds + 1
        if conditions.throttling is not None:
            converge.after_round(left * PAGE_COST, len(guest.dirty) * PAGE_COST)


@pytest.mark.parametrize("throttling", [None, Throttling(), Throttling(initial=50, tailslow=True)])
@pytest.mark.parametrize(("rate", "hot"), [(500, 200), (5_000, 400), (20_000, 800), (4_000, 3_000), (12_000, 9_000)])
def test_what_is_predicted_is_what_happens_to_a_simulated_guest(
    rate: int, hot: int, throttling: Throttling | None
) -> None:
    conditions = replace(QUIET, throttling=throttling)
    guest = SimulatedGuest(rate, hot)
    writes = WorkingSet(tuple(guest.samples(0.05, 0.1, 0.2, 0.5, 1.0, 2.0)), PAGES)
    forecast = predict(PAGES, writes, conditions)
    rest_s, sent, rounds = migrate(guest, conditions)
    assert forecast.converges == (rest_s <= QUIET.downtime_limit_s)
    if forecast.converges:
        assert abs(forecast.rounds - rounds) <= 2
        assert forecast.transferred == pytest.approx(sent * PAGE_COST, rel=0.15)


def test_a_guest_that_writes_the_same_pages_again_and_again_converges_however_fast_it_writes() -> None:
    """A mere rate, a hundred times what the way takes, would say that it never does."""
    writes = WorkingSet((*SimulatedGuest(200_000, 50).samples(0.001, 0.01), Sample(1.0, 60, 0)), PAGES)
    assert predict(PAGES, writes, replace(QUIET, downtime_limit_s=0.3)).converges


def busy(pages_per_s: int) -> WorkingSet:
    """A guest that never writes a page twice."""
    return WorkingSet((Sample(1.0, pages_per_s, 0),), PAGES)


def test_a_guest_that_writes_faster_than_the_way_takes_does_not_converge_and_the_remedies_make_it() -> None:
    assert not predict(PAGES, busy(15_000), QUIET).converges
    channels = {2: PAGE_COST * 12_000, 4: PAGE_COST * 16_000, 8: PAGE_COST * 20_000}
    leeway = replace(LEEWAY, channels=channels)
    found = {remedy.control: remedy for remedy in remedies(PAGES, busy(15_000), QUIET, leeway)}
    assert set(found) == set(Control) - {Control.MAX_BANDWIDTH}  # which nobody has limited
    assert all(remedy.forecast.suffices for remedy in found.values())
    assert found[Control.CPU_THROTTLE_INITIAL].value == 20  # it goes up by itself
    assert found[Control.CPU_THROTTLE_INITIAL].forecast.throttle >= 40  # 0.6 of 15,000 are less than 10,000
    assert found[Control.MULTIFD_CHANNELS].value == 4
    assert 15_000 < found[Control.WAY].value / PAGE_COST < 30_000
    limit = replace(QUIET, downtime_limit_s=(found[Control.DOWNTIME_LIMIT].value - 1) / 1e3)
    assert not predict(PAGES, busy(15_000), limit).converges, "a lower limit would have done"


def test_a_bandwidth_that_the_user_limited_is_what_is_to_be_raised_and_costs_no_downtime() -> None:
    limited = replace(QUIET, max_bandwidth=PAGE_COST * 1_000)
    assert not predict(PAGES, busy(2_000), limited).converges
    found = {remedy.control: remedy.value for remedy in remedies(PAGES, busy(2_000), limited, LEEWAY)}
    assert Control.WAY not in found
    assert 2_000 < found[Control.MAX_BANDWIDTH] / PAGE_COST < 4_000
    assert predict(0, busy(0), limited) == predict(0, busy(0), QUIET)
    rest = predict(PAGES, busy(200), limited)
    assert rest.converges
    assert rest.downtime_s < 0.1 * QUIET.downtime_limit_s


def test_auto_converge_that_takes_too_long_has_to_begin_with_more() -> None:
    """The guest must run less than two thirds of its time, which steps of 10 % reach late."""
    hurried = replace(QUIET, throttling=Throttling(), within_s=14.0)
    assert not predict(PAGES, busy(15_000), hurried).suffices
    assert predict(PAGES, busy(15_000), replace(hurried, within_s=math.inf)).converges
    value = {each.control: each.value for each in remedies(PAGES, busy(15_000), hurried, LEEWAY)}
    less = replace(hurried, throttling=Throttling(initial=value[Control.CPU_THROTTLE_INITIAL] - 1))
    assert not predict(PAGES, busy(15_000), less).suffices


def test_time_that_is_too_short_does_not_suffice() -> None:
    assert predict(PAGES, busy(10), QUIET).converges
    hurried = replace(QUIET, within_s=1.0)  # the first round alone takes two seconds
    assert not predict(PAGES, busy(10), hurried).in_time
    assert [remedy.control for remedy in remedies(PAGES, busy(10), hurried, LEEWAY)] == [Control.WAY]
    slow_cipher = replace(LEEWAY, sealing=QUIET.bytes_per_s)
    assert remedies(PAGES, busy(10), hurried, slow_cipher) == ()


def test_downtime_has_the_rest_and_what_a_handover_takes() -> None:
    near, far = (predict(PAGES, busy(100), replace(QUIET, standstill_s=seconds)) for seconds in (0.02, 0.12))
    assert far.downtime_s - near.downtime_s == pytest.approx(0.1)
    nothing = predict(0, busy(0), replace(QUIET, standstill_s=0.02, setup_s=0.5))
    assert nothing == Forecast(total_s=0.52, transferred=0, rounds=2, downtime_s=0.02, converges=True)


@given(
    st.lists(st.tuples(st.floats(0.01, 60), st.integers(0, PAGES)), max_size=6),
    st.integers(0, PAGES),
    st.floats(1e3, 1e10),
    st.floats(0, 2000),
)
def test_every_prediction_ends_and_no_faster_way_is_slower(
    points: list[tuple[float, int]], first: int, rate: float, limit_s: float
) -> None:
    grown = 0
    samples = []
    for seconds, pages in sorted(points):
        grown = max(grown, pages)
        samples.append(Sample(seconds, grown, 0))
    writes = WorkingSet(samples, PAGES)
    slow, fast = (predict(first, writes, Conditions(speed, limit_s)) for speed in (rate, rate * 2))
    assert all(math.isfinite(value) for value in (slow.total_s, slow.downtime_s))
    assert fast.converges or not slow.converges
    assert slow.transferred >= first * PAGE_COST
