"""Who may be in guest mode, and proof that nobody is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sealift.errors import RefusedError
from sealift.wire.platform import ALLOWED, Phase, Run


class RunGate:
    """Counts vCPUs in guest mode; once barred, none enters until the bar is lifted.

    `phase` tells where the VM is: outside the phases that allow Run, no vCPU enters at all.
    """

    def __init__(self, phase: Callable[[], Phase]) -> None:
        self._phase = phase
        self._lock = threading.Lock()
        self._inside = 0
        self._barred = False

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be in guest mode.

        Raises:
            RefusedError: the VM may not run now.
        """
        with self._lock:
            phase = self._phase()
            if phase not in ALLOWED[Run]:
                raise RefusedError(f"a VM that is {phase.value} cannot be run")
            if self._barred:
                raise RefusedError("the handler keeps this VM stopped; cancel the migration to run it")
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1

    def bar(self) -> None:
        """Keep every vCPU out from now on.

        Raises:
            RefusedError: a vCPU is in guest mode, or in the middle of a port access; nothing changed.
        """
        with self._lock:
            if self._inside:
                raise RefusedError(f"{self._inside} vCPUs are in guest mode; kick them first")
            self._barred = True

    def lift(self) -> None:
        """Let vCPUs enter again, as far as the phase allows."""
        with self._lock:
            self._barred = False

    @contextmanager
    def barring(self) -> Iterator[None]:
        """Keep every vCPU out for a while.

        Raises:
            RefusedError: as `bar`.
        """
        self.bar()
        try:
            yield
        finally:
            self.lift()

    @property
    def barred(self) -> bool:
        """Whether every vCPU is out and stays out."""
        return self._barred
