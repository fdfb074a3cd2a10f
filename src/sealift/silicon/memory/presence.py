"""Which pages of the private plane are not here yet, for a guest that runs before all of it has come (post-copy).

Whoever needs a missing page waits for it here, and so demands it; the VMM, which fetches pages, hears a bell and takes
the demands. A page is here once its whole content is: nobody sees half of one.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable

import numpy as np

from sealift.pageset import PageNumbers, PageSet


class MissingPageError(Exception):
    """An access needs a page that is not here; nothing has changed."""

    def __init__(self, page: int) -> None:
        super().__init__(f"page {page} is missing")
        self.page = page


class Presence:
    """Thread-safe.

    Attributes:
        any: whether pages are missing at all; asked before everything else, as it is almost never so.
        bell: an eventfd that is readable while there are demands to take.
    """

    def __init__(self, pages: int) -> None:
        self.any = False
        self._missing = PageSet(pages)
        self._demanded = PageSet(pages)
        self._fresh: list[int] = []
        self._changed = threading.Condition()
        self.bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        weakref.finalize(self, os.close, self.bell)

    def expect(self, missing: PageSet) -> None:
        """These are missing from now on."""
        with self._changed:
            self._missing |= missing
            self.any = bool(self._missing)

    def arrived(self, numbers: PageNumbers) -> None:
        """Their content is in place."""
        with self._changed:
            self._missing.remove(numbers)
            self.any = bool(self._missing)
            self._changed.notify_all()

    def lacks(self, page: int) -> bool:
        """Whether a page is missing."""
        return self.any and page in self._missing

    def need(self, page: int) -> None:
        """Go on only with a page that is here.

        Raises:
            MissingPageError: it is not.
        """
        if self.lacks(page):
            raise MissingPageError(page)

    def lacking(self, first: int, count: int) -> PageNumbers:
        """Which of these pages are missing."""
        if not self.any:
            return np.empty(0, np.uint64)
        wanted = PageSet(self._missing.pages)
        wanted.add_range(first, count)
        with self._changed:
            wanted &= self._missing
        return wanted.numbers()

    def wait(self, first: int, count: int = 1, give_up: Callable[[], bool] = lambda: False) -> None:
        """Demand what is missing of these pages, and wait until all are here, or `give_up` (see `stir`) says so."""
        numbers = self.lacking(first, count)
        if not numbers.size:
            return
        with self._changed:
            fresh = [int(page) for page in numbers if int(page) not in self._demanded]
            self._demanded.add(np.array(fresh, np.uint64))
            self._fresh += fresh
            if fresh:
                os.eventfd_write(self.bell, 1)
            self._changed.wait_for(lambda: give_up() or not self._missing.holds(numbers).any())

    def stir(self) -> None:
        """Let everybody who waits ask again whether to give up."""
        with self._changed:
            self._changed.notify_all()

    def take_demands(self, limit: int) -> list[int]:
        """At most `limit` pages that were demanded since and are missing, oldest first; the bell rings on for more."""
        with self._changed:
            taken, self._fresh = self._fresh[:limit], self._fresh[limit:]
            if not self._fresh:
                with contextlib.suppress(BlockingIOError):  # it was taken before
                    os.eventfd_read(self.bell)
            return [page for page in taken if page in self._missing]

    def demand_again(self) -> None:
        """The connections were lost, and demands with them: whoever still waits demands anew."""
        with self._changed:
            self._demanded &= self._missing
            self._fresh = [int(page) for page in self._demanded.numbers()]
            if self._fresh:
                os.eventfd_write(self.bell, 1)
