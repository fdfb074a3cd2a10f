"""Sets of RAM pages, one bit a page in 64-bit words.

The same object serves as dirty log, page-state bitmap and record selection. Bulk operations cost time in
proportion to words; only `mark` and `discard` touch single bits, for the write-fault path.
Word `i`, bit `j` is RAM page 64*i + j: KVM's dirty-log layout, little-endian.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

PageNumbers: TypeAlias = npt.NDArray[np.uint64]
"""One-dimensional array of RAM page numbers."""

Words: TypeAlias = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Span:
    """Whole words of a set: `start` up to, not including, `stop`. Work on a few pages need not look at all RAM."""

    start: int
    stop: int

    @classmethod
    def covering(cls, first: int, count: int) -> Span:
        """The fewest words that hold pages first .. first+count-1."""
        return cls(first >> 6, (first + count + 63) >> 6)

    @property
    def base(self) -> int:
        """Its first page."""
        return self.start << 6

    @property
    def pages(self) -> int:
        """How many pages its words have room for."""
        return (self.stop - self.start) << 6

    def of_range(self, first: int, count: int) -> PageSet:
        """A part that holds pages first .. first+count-1 (numbered as in the whole set)."""
        made = PageSet(self.pages)
        made.add_range(first - self.base, count)
        return made


class PageSet:
    """A mutable set of RAM pages out of `pages`; not thread-safe by itself."""

    __slots__ = ("_bits", "pages", "words")

    def __init__(self, pages: int, words: Words | None = None) -> None:
        """Make an empty set, or wrap `words` (length ceil(pages/64), not copied, spare bits clear)."""
        length = (pages + 63) >> 6
        self.pages = pages
        self.words: Words = np.zeros(length, np.uint64) if words is None else words
        if self.words.shape != (length,):
            raise ValueError(f"{pages} pages need {length} words, not {self.words.shape}")
        self._bits = self.words.data

    @classmethod
    def full(cls, pages: int) -> PageSet:
        """The set of all pages."""
        made = cls(pages)
        made.add_range(0, pages)
        return made

    @classmethod
    def of(cls, pages: int, numbers: PageNumbers) -> PageSet:
        """The set holding exactly `numbers`."""
        made = cls(pages)
        made.add(numbers)
        return made

    @classmethod
    def from_bytes(cls, pages: int, data: bytes) -> PageSet:
        """Decode `to_bytes`.

        Raises:
            ValueError: wrong length, or a bit beyond the last page is set.
        """
        if len(data) != ((pages + 63) >> 6) * 8:
            raise ValueError(f"a set of {pages} pages takes {((pages + 63) >> 6) * 8} bytes, not {len(data)}")
        made = cls(pages, np.frombuffer(data, "<u8").astype(np.uint64))
        if pages & 63 and int(made.words[-1]) >> (pages & 63):
            raise ValueError("a bit beyond the last page is set")
        return made

    def to_bytes(self) -> bytes:
        """Little-endian words."""
        return self.words.astype("<u8").tobytes()

    def copy(self) -> PageSet:
        """An independent copy."""
        return PageSet(self.pages, self.words.copy())

    @property
    def span(self) -> Span:
        """All its words."""
        return Span(0, len(self.words))

    def part(self, span: Span) -> PageSet:
        """Some of its words as a set, numbered from `span.base`; it shares memory with this one."""
        return PageSet(span.pages, self.words[span.start : span.stop])

    def add_part(self, span: Span, part: PageSet) -> None:
        """Add pages that are numbered from `span.base`."""
        self.words[span.start : span.stop] |= part.words

    def mark(self, page: int) -> None:
        """Add one page."""
        self._bits[page >> 6] |= 1 << (page & 63)

    def discard(self, page: int) -> None:
        """Remove one page."""
        self._bits[page >> 6] &= ~(1 << (page & 63))

    def __contains__(self, page: int) -> bool:
        return bool(self._bits[page >> 6] >> (page & 63) & 1)

    def __bool__(self) -> bool:
        return bool(self.words.any())

    def __len__(self) -> int:
        return int(np.bitwise_count(self.words).sum())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PageSet):
            return NotImplemented
        return self.pages == other.pages and bool(np.array_equal(self.words, other.words))

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __ior__(self, other: PageSet) -> PageSet:
        np.bitwise_or(self.words, other.words, out=self.words)
        return self

    def __iand__(self, other: PageSet) -> PageSet:
        np.bitwise_and(self.words, other.words, out=self.words)
        return self

    def __isub__(self, other: PageSet) -> PageSet:
        np.bitwise_and(self.words, ~other.words, out=self.words)
        return self

    def clear(self) -> None:
        """Remove every page."""
        self.words.fill(0)

    def take(self) -> PageSet:
        """Move the content to a new set, leaving this one empty."""
        taken = self.copy()
        self.clear()
        return taken

    def add(self, numbers: PageNumbers) -> None:
        """Add many pages."""
        np.bitwise_or.at(self.words, numbers >> 6, np.uint64(1) << (numbers & np.uint64(63)))

    def remove(self, numbers: PageNumbers) -> None:
        """Remove many pages."""
        np.bitwise_and.at(self.words, numbers >> 6, ~(np.uint64(1) << (numbers & np.uint64(63))))

    def holds(self, numbers: PageNumbers) -> npt.NDArray[np.bool_]:
        """Which of `numbers` are in the set, as an array of the same length."""
        bits: npt.NDArray[np.uint64] = self.words[numbers >> 6] >> (numbers & np.uint64(63))
        return np.asarray(bits & np.uint64(1), np.bool_)

    def has_range(self, first: int, count: int) -> bool:
        """Whether all of pages first .. first+count-1 are in the set."""
        return all(bool(np.all(self.words[word] & mask == mask)) for word, mask in self._range_masks(first, count))

    def add_range(self, first: int, count: int) -> None:
        """Add pages first .. first+count-1."""
        for word, mask in self._range_masks(first, count):
            self.words[word] |= mask

    def remove_range(self, first: int, count: int) -> None:
        """Remove pages first .. first+count-1."""
        for word, mask in self._range_masks(first, count):
            self.words[word] &= ~mask

    @staticmethod
    def _range_masks(first: int, count: int) -> list[tuple[int | slice, np.uint64]]:
        if count <= 0:
            return []
        ones = (1 << 64) - 1
        last = first + count - 1
        head, tail = first >> 6, last >> 6
        head_mask = ones << (first & 63) & ones
        tail_mask = ones >> (63 - (last & 63))
        if head == tail:
            return [(head, np.uint64(head_mask & tail_mask))]
        return [
            (head, np.uint64(head_mask)),
            (slice(head + 1, tail), np.uint64(ones)),
            (tail, np.uint64(tail_mask)),
        ]

    def numbers(self, limit: int | None = None) -> PageNumbers:
        """The pages in ascending order; only the first `limit` (and only the words needed) when given."""
        nonzero = np.flatnonzero(self.words)
        if limit is not None:
            # Every nonzero word holds at least one page, so `limit` words are always enough.
            nonzero = nonzero[:limit]
        if not nonzero.size:
            return np.empty(0, np.uint64)
        bits = np.unpackbits(self.words[nonzero].astype("<u8").view(np.uint8), bitorder="little").reshape(-1, 64)
        rows, columns = np.nonzero(bits)
        found = (nonzero[rows] * 64 + columns).astype(np.uint64)
        return found if limit is None else found[:limit]

    def count_runs(self, part: Span | None = None) -> int:
        """How many `runs` there are, or how many of them begin in a part, without listing them."""
        return len(self._firsts(self.span if part is None else part))

    def runs(self) -> list[tuple[int, int]]:
        """Maximal runs of consecutive pages as (first, count); time goes by words and runs, not by pages."""
        firsts, lasts = self._firsts(self.span).numbers(), self._lasts().numbers()
        return list(zip(firsts.tolist(), (lasts - firsts + np.uint64(1)).tolist(), strict=True))

    def _firsts(self, span: Span) -> PageSet:
        """The pages of a part whose predecessor is not in the set."""
        words = self.words[span.start : span.stop]
        before = words << np.uint64(1)
        before[1:] |= words[:-1] >> np.uint64(63)
        if span.start and len(before):
            before[0] |= self.words[span.start - 1] >> np.uint64(63)
        return PageSet(len(words) << 6, words & ~before)

    def _lasts(self) -> PageSet:
        """Pages whose successor is not in the set."""
        behind = self.words >> np.uint64(1)
        behind[:-1] |= self.words[1:] << np.uint64(63)
        return PageSet(self.pages, self.words & ~behind)
