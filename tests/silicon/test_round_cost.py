"""What a round of a migration costs that has no pages: passes over bitmaps, whatever the guest's memory holds.

Compared with listing every page of the same guest, timed in the same moment; the least of several runs counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sealift.address import Gpa, RamBlock, RamLayout
from sealift.pageset import PageSet
from sealift.silicon.memory.guest_memory import GuestMemory

from .windows import KEY, ScriptedGuest

LAYOUT = RamLayout((RamBlock("ram", Gpa(0), 8 << 30),))
RUNS = 20


def least(work: Callable[[], object]) -> float:
    """Seconds of the quickest run."""
    taken = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return min(taken)


def test_a_round_of_an_idle_guest_looks_at_no_single_page() -> None:
    """Passes over bitmaps take a millisecond for 8 GiB, a list of all pages more than ten."""
    memory = GuestMemory(LAYOUT, KEY)
    ScriptedGuest(memory)
    every = PageSet.full(LAYOUT.pages)

    def idle_round() -> None:
        assert not memory.take_unsent()
        assert not memory.take_shared_dirty()
        assert not memory.count_unsent()

    try:
        assert least(idle_round) < least(every.numbers) / 3
    finally:
        memory.close()


def test_holes_of_a_large_guest_are_found_by_words() -> None:
    """A target punches the holes of a guest that has already stopped; page by page that was a third of a second."""
    holes = PageSet.full(LAYOUT.pages)
    holes.remove_range(1000, 10_000)
    assert holes.runs() == [(0, 1000), (11_000, LAYOUT.pages - 11_000)]
    assert least(holes.runs) < least(holes.numbers) / 4
