"""Whose turn it is: one vCPU of a guest executes at a time.

LOCK-prefixed instructions are not atomic between two emulators, so the vCPUs of a guest take turns. The holder is
asked to leave as soon as someone has waited long enough; an uncontended vCPU is never disturbed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_RETRY_S = 0.001
"""A preemption can fall between two emulation slices and be lost; it is repeated until it is noticed."""


class Turn:
    """First come, first served mutual exclusion with preemption; re-entrant per thread.

    `preempt` is called, from a waiting thread, to make the current holder leave guest mode.
    """

    def __init__(self, preempt: Callable[[], None]) -> None:
        self._preempt = preempt
        self._changed = threading.Condition(threading.Lock())
        self._queue: deque[object] = deque()
        self._holder: int | None = None
        self._depth = 0

    @contextmanager
    def held(self, patience_s: float) -> Iterator[None]:
        """Hold the turn; the present holder is preempted after `patience_s` seconds (0: at once)."""
        self._acquire(patience_s)
        try:
            yield
        finally:
            self._release()

    @contextmanager
    def yielded(self, patience_s: float) -> Iterator[None]:
        """Give up a turn held once, and take it again afterwards as `held` does."""
        self._release()
        try:
            yield
        finally:
            self._acquire(patience_s)

    def _acquire(self, patience_s: float) -> None:
        me = threading.get_ident()
        with self._changed:
            if self._holder == me:
                self._depth += 1
                return
            ticket = object()
            self._queue.append(ticket)
            while self._holder is not None or self._queue[0] is not ticket:
                if not patience_s or not self._changed.wait(patience_s):
                    self._preempt()
                    self._changed.wait(_RETRY_S)
            self._queue.popleft()
            self._holder, self._depth = me, 1

    def _release(self) -> None:
        with self._changed:
            self._depth -= 1
            if self._depth == 0:
                self._holder = None
                self._changed.notify_all()
