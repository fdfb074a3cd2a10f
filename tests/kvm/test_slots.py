"""Logs and mosaic on a real KVM, where blocks of RAM begin in the middle of a word of the sets of pages."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.errors import GuestError
from sealift.pageset import PageSet, Span
from sealift.silicon.engines.interface import VmShape
from sealift.silicon.engines.kvm.engine import KvmEngine
from sealift.silicon.engines.kvm.slots import RUNS_LIMIT
from sealift.silicon.memory.guest_memory import GuestMemory, PageStates
from sealift.wire.platform import Halt
from silicon.board import CODE, PD, PDPT, PML4, PT, Board
from silicon.code import HLT, store_value
from silicon.conftest import KVM
from silicon.windows import KEY

LAYOUT = RamLayout(
    (
        RamBlock("low", Gpa(0), 70 * PAGE_SIZE),
        RamBlock("middle", Gpa(1 << 30), 9 * PAGE_SIZE),
        RamBlock("high", Gpa(1 << 32), 75 * PAGE_SIZE),
    )
)
OPEN = 256
"""Page n without C-bit is so many pages above page n with it."""
OWN = {page // PAGE_SIZE for page in (PML4, PDPT, PD, PT, CODE)}
"""Of the guest's machinery: nested paging writes tables, and a test writes code."""
SEAMS = [*range(0x28, 0x30), 62, 63, 64, 65, 68, 69, 70, 71, 77, 78, 79, 80, 126, 127, 128, 129, 152, 153]
"""RAM pages at the ends of blocks and of words, and some others."""

seams = st.sets(st.sampled_from(SEAMS))


@pytest.fixture(scope="module")
def scattered() -> Iterator[Board]:
    """A guest whose second and third block begin in the middle of a word."""
    board = Board(KVM, layout=LAYOUT)
    for page in range(LAYOUT.pages):
        gpa = LAYOUT.gpa(page * PAGE_SIZE)
        board.map(page * PAGE_SIZE, gpa)
        board.map((OPEN + page) * PAGE_SIZE, gpa, encrypted=False)
    yield board
    board.close()


def write(board: Board, encrypted: set[int], plain: set[int], value: int = 1) -> None:
    """The guest stores its value and its page's number, through either window."""
    places = [*encrypted, *(OPEN + page for page in plain)]
    code = b"".join(store_value(place * PAGE_SIZE, value << 16 | place) for place in sorted(places))
    assert board.execute(code + HLT) == Halt()


def take(board: Board, span: Span) -> tuple[set[int], set[int]]:
    """The logs of a span, as RAM pages, without the guest's own."""
    with board.engine.quiesced():
        logs = board.engine.take_logs(span)
    encrypted, plain = ({int(page) + span.base for page in log.numbers()} for log in (logs.encrypted, logs.plain))
    return encrypted - OWN, plain - OWN


def every(board: Board) -> Span:
    """All of RAM."""
    return board.memory.states.span


on_one_board = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@on_one_board
@given(encrypted=seams, plain=seams)
def test_logs_name_the_pages_that_were_written_and_no_others(
    scattered: Board, encrypted: set[int], plain: set[int]
) -> None:
    take(scattered, every(scattered))
    write(scattered, encrypted, plain)
    assert take(scattered, every(scattered)) == (encrypted, plain)
    assert take(scattered, every(scattered)) == (set(), set())


@on_one_board
@given(encrypted=seams, plain=seams, word=st.integers(0, 2), again=seams)
def test_reading_a_part_of_the_logs_leaves_the_rest_in_them(
    scattered: Board, encrypted: set[int], plain: set[int], word: int, again: set[int]
) -> None:
    """Also after more was written; what had been read is seen again if it was written again."""
    take(scattered, every(scattered))
    write(scattered, encrypted, plain)
    within = set(range(64 * word, 64 * word + 64))
    assert take(scattered, Span(word, word + 1)) == (encrypted & within, plain & within)
    write(scattered, again, set())
    assert take(scattered, every(scattered)) == (encrypted - within | again, plain - within)


@on_one_board
@given(steps=st.lists(st.tuples(st.sampled_from(SEAMS), st.integers(1, 12), st.booleans()), max_size=8))
def test_every_page_is_seen_without_c_bit_by_its_state(scattered: Board, steps: list[tuple[int, int, bool]]) -> None:
    """Whatever history of flips, of ranges that cross the blocks' ends; and a flip reads no other page's log away."""
    shared: set[int] = {int(page) for page in scattered.memory.states.numbers()}
    for first, count, to_shared in steps:
        pages = set(range(first, min(first + count, LAYOUT.pages)))
        scattered.memory.convert(first, len(pages), to_shared=to_shared)
        shared = shared | pages if to_shared else shared - pages
    assert {int(page) for page in scattered.memory.states.numbers()} == shared
    scattered.memory.take_unsent()
    scattered.memory.take_shared_dirty()
    write(scattered, set(SEAMS), set(), 2)
    write(scattered, set(), set(SEAMS), 3)
    for page in SEAMS:
        open_word = 3 << 16 | OPEN + page
        in_private = 2 << 16 | page if page in shared else open_word
        assert scattered.private(page * PAGE_SIZE) == in_private
        if page in shared:
            assert scattered.shared(page * PAGE_SIZE) == open_word
    assert {int(page) for page in scattered.memory.take_unsent().numbers()} - OWN == set(SEAMS)
    assert {int(page) for page in scattered.memory.take_shared_dirty().numbers()} - OWN == set(SEAMS) & shared


def test_every_other_page_can_be_shared_and_all_come_back(scattered: Board) -> None:
    even, odd = set(SEAMS[::2]), set(SEAMS[1::2])
    for page in range(SEAMS[0], LAYOUT.pages):
        scattered.memory.convert(page, 1, to_shared=page in even)
    write(scattered, set(), even | odd, 4)
    assert all(scattered.shared(page * PAGE_SIZE) == 4 << 16 | OPEN + page for page in even)
    assert all(scattered.private(page * PAGE_SIZE) == 4 << 16 | OPEN + page for page in odd)
    scattered.memory.convert(SEAMS[0], LAYOUT.pages - SEAMS[0], to_shared=False)
    write(scattered, set(), even | odd, 5)
    assert all(scattered.private(page * PAGE_SIZE) == 5 << 16 | OPEN + page for page in even | odd)


def test_memory_as_scattered_as_the_limit_allows_is_shown_and_beyond_it_refused() -> None:
    """Every other page is shared; a process may have only so many mappings, and others need some too."""
    layout = RamLayout((RamBlock("ram", Gpa(0), 2 * (RUNS_LIMIT + 1) * PAGE_SIZE),))
    memory = GuestMemory(layout, KEY)
    numbers = np.arange(layout.pages, dtype=np.uint64)
    memory.private.words[:, 0] = numbers
    memory.shared.words[:, 0] = numbers + np.uint64(layout.pages)
    engine = KVM.factory().make(memory, VmShape(1))
    assert isinstance(engine, KvmEngine)
    states = PageSet.of(layout.pages, numbers[: 2 * RUNS_LIMIT : 2])
    assert states.count_runs() == RUNS_LIMIT
    memory.load_states(PageStates(states, PageSet(layout.pages), PageSet(layout.pages)))
    mosaic = (ctypes.c_uint64 * (layout.size // 8)).from_address(engine._slots.mosaic.address)
    first_words = np.ctypeslib.as_array(mosaic).reshape(layout.pages, -1)[:, 0]
    assert np.array_equal(first_words, numbers + np.where(states.holds(numbers), np.uint64(layout.pages), np.uint64(0)))
    with pytest.raises(GuestError):
        memory.convert(2 * RUNS_LIMIT, 1, to_shared=True)
    assert memory.states == states
    KVM.release(engine)
