"""The pages of one round (epoch) that still wait to be sealed."""

from __future__ import annotations

import numpy as np

from sealift.pageset import PageNumbers, PageSet

_SCAN_WORDS = 4096
"""Words looked at in one go: a quarter million pages, a few microseconds."""


class Round:
    """A set of pages that is consumed from its front; not thread-safe by itself.

    Attributes:
        remaining: pages left.
    """

    def __init__(self, pages: PageSet) -> None:
        """Take over `pages`."""
        self._left = pages
        self._first_word = 0
        self.remaining = len(pages)

    def take(self, limit: int) -> PageNumbers:
        """Remove and return the first `limit` pages, ascending; fewer at the end."""
        taken = self._scan(self._first_word, limit)
        if not taken.size:
            return taken
        self._first_word = int(taken[-1]) >> 6
        if is_run(taken):
            self._left.remove_range(int(taken[0]), taken.size)
        else:
            self._left.remove(taken)
        self.remaining -= taken.size
        return taken

    def take_page(self, page: int) -> bool:
        """Remove one page; False if it is not (or no more) in the round."""
        if page not in self._left:
            return False
        self._left.discard(page)
        self.remaining -= 1
        return True

    def listed(self, first: int, limit: int) -> PageNumbers:
        """The first `limit` pages left whose number is at least `first`, ascending."""
        # 64 more than asked, since the word that holds `first` may also hold pages before it.
        found = self._scan(first >> 6, limit + 64)
        return found[found >= np.uint64(first)][:limit]

    def _scan(self, word: int, limit: int) -> PageNumbers:
        words = self._left.words
        parts = []
        while word < words.size and limit > 0:
            part = words[word : word + _SCAN_WORDS]
            found = PageSet(part.size * 64, part).numbers(limit)
            parts.append(found + np.uint64(word * 64))
            limit -= found.size
            word += _SCAN_WORDS
        return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def is_run(ascending: PageNumbers) -> bool:
    """Whether strictly ascending page numbers (at least one) are consecutive."""
    return int(ascending[-1]) - int(ascending[0]) == ascending.size - 1
