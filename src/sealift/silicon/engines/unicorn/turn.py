"""Whose turn it is: one vCPU of a guest executes at a time.

LOCK-prefixed instructions are not atomic between two emulators, so the vCPUs of a guest take turns, a slice each.
Whoever has to keep all of them out of guest mode takes a turn too.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Turn:
    """Mutual exclusion in order of arrival (a plain lock would let a busy vCPU starve the rest); re-entrant."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._queue: deque[object] = deque()
        self._holder: int | None = None
        self._depth = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the turn, after all who came before."""
        self._acquire()
        try:
            yield
        finally:
            self._release()

    def _acquire(self) -> None:
        me = threading.get_ident()
        with self._changed:
            if self._holder != me:
                ticket = object()
                self._queue.append(ticket)
                self._changed.wait_for(lambda: self._holder is None and self._queue[0] is ticket)
                self._queue.popleft()
                self._holder = me
            self._depth += 1

    def _release(self) -> None:
        with self._changed:
            self._depth -= 1
            if self._depth == 0:
                self._holder = None
                self._changed.notify_all()
