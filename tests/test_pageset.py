"""Sets of pages in words are sets: whatever is done to them is done to Python's own beside them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealift.pageset import PageSet, Span

PAGES = 300
"""Several words, the last of which is not full."""

numbers = st.integers(0, PAGES - 1)
naive_sets = st.one_of(
    st.sets(numbers),
    # Long runs, which sets of single pages hardly ever have.
    st.lists(st.tuples(numbers, st.integers(0, 130)), max_size=6).map(
        lambda runs: {page for first, count in runs for page in range(first, min(first + count, PAGES))}
    ),
)
ranges = st.tuples(st.integers(0, PAGES), st.integers(0, PAGES)).map(lambda ends: (min(ends), max(ends) - min(ends)))
"""First page and count; the count may be 0."""


def of(naive: set[int], pages: int = PAGES) -> PageSet:
    """The set in words."""
    return PageSet.of(pages, np.array(sorted(naive), np.uint64))


def content(found: PageSet) -> set[int]:
    """Back again; also that no bit beyond the end is set and that all counts agree."""
    listed = found.numbers().tolist()
    assert listed == sorted(set(listed))
    assert len(found) == len(listed)
    assert bool(found) is bool(listed)
    return set(listed)


def naive_runs(naive: set[int]) -> list[tuple[int, int]]:
    """Maximal runs, page by page."""
    runs: list[tuple[int, int]] = []
    for page in sorted(naive):
        if runs and sum(runs[-1]) == page:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((page, 1))
    return runs


@given(naive=naive_sets)
def test_a_set_holds_what_was_put_in(naive: set[int]) -> None:
    found = of(naive)
    assert content(found) == naive
    assert {page for page in range(PAGES) if page in found} == naive
    assert found.holds(np.arange(PAGES, dtype=np.uint64)).tolist() == [page in naive for page in range(PAGES)]
    assert PageSet.from_bytes(PAGES, found.to_bytes()) == found


@given(naive=naive_sets, limit=st.integers(0, PAGES))
def test_the_first_so_many_are_the_lowest(naive: set[int], limit: int) -> None:
    assert of(naive).numbers(limit).tolist() == sorted(naive)[:limit]


@given(one=naive_sets, other=naive_sets)
def test_sets_are_joined_cut_and_subtracted(one: set[int], other: set[int]) -> None:
    for in_place, expected in (
        (PageSet.__ior__, one | other),
        (PageSet.__iand__, one & other),
        (PageSet.__isub__, one - other),
    ):
        assert content(in_place(of(one), of(other))) == expected
    changed = of(one)
    changed.add(of(other).numbers())
    assert content(changed) == one | other
    changed.remove(of(other).numbers())
    assert content(changed) == one - other


@given(naive=naive_sets, page=numbers)
def test_single_pages_come_and_go(naive: set[int], page: int) -> None:
    found = of(naive)
    found.mark(page)
    assert content(found) == naive | {page}
    found.discard(page)
    assert content(found) == naive - {page}
    taken = found.take()
    assert (content(taken), content(found)) == (naive - {page}, set())


@given(naive=naive_sets, where=ranges)
def test_ranges_are_added_and_removed(naive: set[int], where: tuple[int, int]) -> None:
    pages = set(range(where[0], sum(where)))
    found = of(naive)
    found.add_range(*where)
    assert content(found) == naive | pages
    found.remove_range(*where)
    assert content(found) == naive - pages


@given(naive=naive_sets, where=ranges)
def test_a_set_has_a_range_if_it_has_every_page_of_it(naive: set[int], where: tuple[int, int]) -> None:
    pages = set(range(where[0], sum(where)))
    assert of(naive).has_range(*where) is (pages <= naive)
    assert of(naive | pages).has_range(*where)
    for missing in {where[0], sum(where) - 1} & pages:
        assert not of((naive | pages) - {missing}).has_range(*where)


@given(naive=naive_sets)
def test_runs_are_maximal_and_their_number_is_known_without_them(naive: set[int]) -> None:
    expected = naive_runs(naive)
    assert of(naive).runs() == expected
    assert of(naive).count_runs() == len(expected)


@given(naive=naive_sets, seam=st.integers(0, PAGES >> 6))
def test_each_run_begins_in_one_part(naive: set[int], seam: int) -> None:
    pages = of(naive)
    parts = Span(0, seam), Span(seam, pages.span.stop)
    assert sum(pages.count_runs(part) for part in parts) == len(naive_runs(naive))


@pytest.mark.parametrize(
    ("naive", "runs"),
    [
        (set(), 0),
        ({63, 64}, 1),
        ({62, 64}, 2),
        ({0, 127, 128, 299}, 3),
        (set(range(PAGES)), 1),
        (set(range(0, PAGES, 2)), PAGES // 2),
    ],
    ids=["none", "over a seam", "beside a seam", "at the ends", "all", "every other"],
)
def test_runs_at_the_seams_of_words(naive: set[int], runs: int) -> None:
    assert of(naive).count_runs() == len(of(naive).runs()) == runs


@given(naive=naive_sets, where=ranges.filter(lambda where: where[1] > 0), other=naive_sets)
def test_a_part_is_the_set_itself_under_other_numbers(naive: set[int], where: tuple[int, int], other: set[int]) -> None:
    """The part that covers a range is whole words; what is done to it is done to the set."""
    first, count = where
    span = Span.covering(first, count)
    assert span.base <= first
    assert first - span.base < 64
    assert 0 <= span.base + span.pages - (first + count) < 64
    within = set(range(span.base, span.base + span.pages))
    found = of(naive)
    part = found.part(span)
    assert content(part) == {page - span.base for page in naive & within}
    wanted = span.of_range(first, count)
    assert content(wanted) == {page - span.base for page in range(first, first + count)}
    part -= wanted
    assert content(found) == naive - set(range(first, first + count))
    found.add_part(span, of(other).part(span))
    assert content(found) == naive - set(range(first, first + count)) | other & within


def test_the_whole_is_a_part() -> None:
    found = of({0, 299})
    assert found.part(found.span).numbers().tolist() == [0, 299]
    assert content(PageSet.full(PAGES)) == set(range(PAGES))


@pytest.mark.parametrize(
    ("length", "last"), [(32, 0), (48, 0), (40, 1 << 44)], ids=["a word less", "a word more", "a bit beyond"]
)
def test_bytes_of_another_size_or_with_more_pages_are_no_set(length: int, last: int) -> None:
    data = bytes(length - 8) + last.to_bytes(8, "little")
    with pytest.raises(ValueError, match="page"):
        PageSet.from_bytes(PAGES, data)
