"""The writer writes to as many pages a second as it was told, over and over, and to no others."""

from __future__ import annotations

import pytest

from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.guest.programs import program, startup_blob
from sealift.launch.image import GuestRecipe

from .machine import Machine

LAYOUT = RamLayout((RamBlock("ram", Gpa(0), 16 << 20),))
PAUSES = 25


def writer(options: str) -> Machine:
    """One that has asked for some pauses."""
    recipe = GuestRecipe(startup_blob(), LAYOUT, 1, bytes(32), program("writer"), command_line=options)
    guest = Machine(recipe)
    guest.run(lambda _: len(guest.pauses) >= PAUSES)
    return guest


def counts(guest: Machine) -> list[int]:
    """How often each of its pages was written, the first in memory first; they are the last ones that are not zero."""
    first = guest.recipe.table().free // PAGE_SIZE
    words = [int.from_bytes(guest.page(page * PAGE_SIZE)[:8], "little") for page in range(first, LAYOUT.pages)]
    return [word for word in words if word]


@pytest.mark.parametrize(("rate", "burst", "pause_us"), [(1000, 10, 10_000), (100, 1, 10_000), (7, 1, 142_857)])
def test_its_bursts_and_pauses_make_the_rate(rate: int, burst: int, pause_us: int) -> None:
    guest = writer(f"rate={rate} ws=1000")
    assert set(guest.pauses) == {pause_us}
    assert sum(counts(guest)) in range(burst * len(guest.pauses), burst * (len(guest.pauses) + 1) + 1)


def test_it_walks_over_its_working_set_again_and_again() -> None:
    written = counts(writer("rate=1000 ws=7"))
    assert len(written) == 7
    assert max(written) - min(written) <= 1


def test_without_a_rate_it_writes_nothing_and_halts() -> None:
    recipe = GuestRecipe(startup_blob(), LAYOUT, 2, bytes(32), program("writer"), command_line="rate=0")
    guest = Machine(recipe)
    guest.run_to_the_end()
    assert guest.console == "writer ready\n"
    assert not guest.pauses
