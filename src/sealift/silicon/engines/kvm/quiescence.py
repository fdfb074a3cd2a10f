"""Who is in guest mode, and how all of them are held out of it.

vCPU threads enter and leave; whoever changes what the guest sees (a flip, a look at the logs) holds everybody out::

    vCPU thread          entered(): inside ─── KVM_RUN ─── left
    another thread                     held(): ask them to leave … all are out, and none enters … released
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Enterer(Protocol):
    """Somebody who can be in guest mode. Both are called with the quiescence locked, so no order to leave is lost."""

    def about_to_enter(self) -> None:
        """It counts as inside from now on."""

    def leave_soon(self) -> None:
        """Leave guest mode as soon as possible, or turn round on the way into it."""


class Quiescence:
    """Lets vCPUs into guest mode, or holds all of them out; holding is re-entrant.

    Who holds again and again keeps nobody out for ever: those that waited enter in between.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: set[Enterer] = set()
        self._waiting: set[Enterer] = set()
        self._owed: set[Enterer] = set()  # waited when a holder let go: it is their turn before the next one's
        self._holder: int | None = None
        self._depth = 0

    def enter(self, vcpu: Enterer) -> None:
        """Wait until nobody holds vCPUs out, then count as inside."""
        with self._changed:
            self._waiting.add(vcpu)
            while self._holder is not None:
                self._changed.wait()
            self._waiting.discard(vcpu)
            vcpu.about_to_enter()
            self._inside.add(vcpu)
            if vcpu in self._owed:
                self._owed.discard(vcpu)
                self._changed.notify_all()

    def left(self, vcpu: Enterer) -> None:
        """Be out again."""
        with self._changed:
            self._inside.discard(vcpu)
            self._changed.notify_all()

    def nudge(self, vcpu: Enterer) -> None:
        """Have a vCPU leave soon, if it is inside."""
        with self._changed:
            if vcpu in self._inside:
                vcpu.leave_soon()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep every vCPU out of guest mode; the caller is out itself."""
        me = threading.get_ident()
        with self._changed:
            if self._holder != me:
                while self._holder is not None or self._owed:
                    self._changed.wait()
                self._holder = me
            self._depth += 1
        try:
            with self._changed:
                for vcpu in self._inside:
                    vcpu.leave_soon()
                while self._inside:
                    self._changed.wait()
            yield
        finally:
            with self._changed:
                self._depth -= 1
                if not self._depth:
                    self._holder = None
                    self._owed = set(self._waiting)
                    self._changed.notify_all()
