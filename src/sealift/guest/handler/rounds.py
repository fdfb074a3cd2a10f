"""The pages of one round (epoch) that still wait to be sealed."""

from __future__ import annotations

import numpy as np

from sealift.pageset import PageNumbers, PageSet

_SCAN_WORDS = 1024
"""Words whose pages are listed in one go and handed out in slices: at most 65,536 numbers, 512 KiB."""


class Round:
    """A set of pages that is consumed from its front; not thread-safe by itself.

    Attributes:
        remaining: pages left.
    """

    def __init__(self, pages: PageSet) -> None:
        """Take over `pages`."""
        self._left = pages
        self._next_word = 0
        self._ahead: PageNumbers = np.empty(0, np.uint64)
        self.remaining = len(pages)

    def take(self, limit: int) -> PageNumbers:
        """Remove and return the first `limit` pages, ascending; fewer at the end."""
        self._look_ahead(limit)
        taken, self._ahead = self._ahead[:limit], self._ahead[limit:]
        if taken.size:
            self._remove(taken)
        return taken

    def rest(self) -> PageSet:
        """The pages that are left, which are taken out of the round."""
        left, self._left = self._left, PageSet(self._left.pages)
        self._ahead, self.remaining = np.empty(0, np.uint64), 0
        return left

    def take_page(self, page: int) -> bool:
        """Remove one page; False if it is not (or no more) in the round."""
        if page not in self._left:
            return False
        self._left.discard(page)
        self._ahead = self._ahead[self._ahead != np.uint64(page)]
        self.remaining -= 1
        return True

    def listed(self, first: int, limit: int) -> PageNumbers:
        """The first `limit` pages left whose number is at least `first`, ascending."""
        found: PageNumbers = np.empty(0, np.uint64)
        word = first >> 6
        while found.size < limit and word < self._left.words.size:
            part = self._numbers(word)
            found = np.concatenate((found, part[part >= np.uint64(first)]))
            word += _SCAN_WORDS
        return found[:limit]

    def _look_ahead(self, count: int) -> None:
        """List at least `count` pages, or all that are left."""
        while self._ahead.size < count and self._next_word < self._left.words.size:
            self._ahead = np.concatenate((self._ahead, self._numbers(self._next_word)))
            self._next_word += _SCAN_WORDS

    def _numbers(self, word: int) -> PageNumbers:
        """Pages left in the `_SCAN_WORDS` words from `word` on."""
        part = self._left.words[word : word + _SCAN_WORDS]
        return PageSet(part.size * 64, part).numbers() + np.uint64(word * 64)

    def _remove(self, taken: PageNumbers) -> None:
        if is_run(taken):
            self._left.remove_range(int(taken[0]), taken.size)
        else:
            self._left.remove(taken)
        self.remaining -= taken.size


def is_run(ascending: PageNumbers) -> bool:
    """Whether strictly ascending page numbers (at least one) are consecutive."""
    return int(ascending[-1]) - int(ascending[0]) == ascending.size - 1
