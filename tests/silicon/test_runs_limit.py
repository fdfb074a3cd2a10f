"""A guest may scatter its shared pages only as far as its engine can show them; beyond that nothing changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.errors import GuestError
from sealift.pageset import PageSet
from sealift.silicon.engines.interface import MAP_GPA_RANGE, Hypercall
from sealift.silicon.memory.guest_memory import GuestMemory
from sealift.silicon.process.hypercalls import _PAGES_AT_ONCE, carry_out
from sealift.wire.platform import PageStateChange

from .windows import KEY, LAYOUT, ScriptedGuest, filled

ENOMEM = 12
ENCRYPTED = 1 << 4


def everything(memory: GuestMemory) -> tuple[object, ...]:
    """All that a flip could change."""
    planes = bytes(memory.private.data), bytes(memory.shared.data)
    return *planes, memory.save_states(), memory._unsent.copy(), memory._shared_dirty.copy()


@pytest.fixture
def scattered(guest: ScriptedGuest, memory: GuestMemory) -> GuestMemory:
    """Pages 2 and 5 are shared, which is as scattered as the engine can show; all pages were written."""
    for page in range(LAYOUT.pages):
        guest.write(page, filled(f"page {page}"), cbit=True)
    guest.runs_limit = 2
    memory.convert(2, 1, to_shared=True)
    memory.convert(5, 1, to_shared=True)
    memory.take_shared_dirty()
    guest.remapped.clear()
    return memory


@pytest.mark.parametrize("page", [0, 7, 15])
def test_one_run_too_many_is_refused_and_changes_nothing(
    guest: ScriptedGuest, scattered: GuestMemory, page: int
) -> None:
    before = everything(scattered)
    with pytest.raises(GuestError, match="more than 2 separate shared ranges"):
        scattered.convert(page, 1, to_shared=True)
    assert everything(scattered) == before
    assert guest.remapped == []
    assert guest.read(page, cbit=False) == filled(f"page {page}")


def test_a_page_made_private_in_the_middle_of_a_run_counts_too(guest: ScriptedGuest, scattered: GuestMemory) -> None:
    scattered.convert(2, 4, to_shared=True)
    guest.runs_limit = 1
    before = everything(scattered)
    with pytest.raises(GuestError):
        scattered.convert(3, 1, to_shared=False)
    assert everything(scattered) == before


def test_what_adds_no_run_is_always_carried_out(scattered: GuestMemory) -> None:
    scattered.convert(3, 1, to_shared=True)  # longer
    scattered.convert(2, 4, to_shared=True)  # two become one
    scattered.convert(9, 2, to_shared=True)  # so there is room for another
    assert scattered.states.numbers().tolist() == [2, 3, 4, 5, 9, 10]
    scattered.convert(0, LAYOUT.pages, to_shared=False)
    assert not scattered.states


def test_after_a_refusal_the_guest_goes_on_as_if_it_had_not_asked(guest: ScriptedGuest, scattered: GuestMemory) -> None:
    with pytest.raises(GuestError):
        scattered.convert(7, 1, to_shared=True)
    guest.write(7, b"written later", cbit=False)
    scattered.convert(5, 1, to_shared=False)
    scattered.convert(7, 1, to_shared=True)
    assert scattered.states.numbers().tolist() == [2, 7]
    assert guest.read(5, cbit=True) == filled("page 5")


@given(flips=st.lists(st.tuples(st.integers(0, 255), st.integers(0, 130), st.booleans()), max_size=12))
def test_the_limit_holds_to_the_run_wherever_runs_join_and_part(flips: list[tuple[int, int, bool]]) -> None:
    """At the seams of the words that sets consist of, too."""
    memory = GuestMemory(RamLayout((RamBlock("ram", Gpa(0), 256 * PAGE_SIZE),)), KEY)
    guest = ScriptedGuest(memory)
    for first, count, to_shared in flips:
        pages = memory.states.copy()
        (pages.add_range if to_shared else pages.remove_range)(first, min(count, 256 - first))
        guest.runs_limit = pages.count_runs() - 1
        if pages != memory.states:
            with pytest.raises(GuestError):
                memory.convert(first, min(count, 256 - first), to_shared=to_shared)
        guest.runs_limit += 1
        memory.convert(first, min(count, 256 - first), to_shared=to_shared)
        assert memory.states == pages
    memory.close()


def test_what_changes_nothing_disturbs_nobody(guest: ScriptedGuest, scattered: GuestMemory) -> None:
    guest.write(2, b"new", cbit=False)
    guest.write(9, b"new", cbit=True)
    scattered.convert(2, 1, to_shared=True)
    scattered.convert(6, 9, to_shared=False)
    assert guest.remapped == []
    logs = guest.take_logs(scattered.states.span)  # still untouched
    assert (logs.plain.numbers().tolist(), logs.encrypted.numbers().tolist()) == ([2], [9])


# --- the hypercall --------------------------------------------------------------------------------------------------


def declare(memory: GuestMemory, first: int, pages: int, *, encrypted: bool) -> tuple[int, PageStateChange | None]:
    """As the guest does, which has one block at 0."""
    attributes = ENCRYPTED if encrypted else 0
    return carry_out(memory, Hypercall(MAP_GPA_RANGE, (first * PAGE_SIZE, pages, attributes, 0)))


def test_the_guest_is_told_that_there_was_no_room(scattered: GuestMemory) -> None:
    assert declare(scattered, 7, 1, encrypted=False) == (-ENOMEM, None)
    assert scattered.states.numbers().tolist() == [2, 5]


class Contended(GuestMemory):
    """Another vCPU declares the last page of the second pass private again, as soon as that is done."""

    def convert(self, first: int, count: int, *, to_shared: bool) -> None:
        """The one that was asked for, and perhaps the other vCPU's."""
        super().convert(first, count, to_shared=to_shared)
        if first + count == 2 * _PAGES_AT_ONCE:
            super().convert(first + count - 1, 1, to_shared=False)


def test_of_a_call_that_fails_on_the_way_the_vmm_is_told_what_was_done() -> None:
    """It takes three passes, and for the third there is no room any more."""
    pages = 3 * _PAGES_AT_ONCE
    memory = Contended(RamLayout((RamBlock("ram", Gpa(0), pages * PAGE_SIZE),)), KEY)
    ScriptedGuest(memory).runs_limit = 1
    done = 2 * _PAGES_AT_ONCE
    assert declare(memory, 0, pages, encrypted=False) == (-ENOMEM, PageStateChange(0, done, encrypted=False))
    expected = PageSet(pages)
    expected.add_range(0, done - 1)
    assert memory.states == expected
