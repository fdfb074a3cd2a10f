"""Slows a guest by keeping its vCPUs out of guest mode for a share of the time.

::

    percentage 50:   run 10 ms ─ held 10 ms ─ run 10 ms ─ held 10 ms …
    percentage 80:   run 10 ms ─ held 40 ms ─ run 10 ms ─ held 40 ms …

All vCPUs are held at once, so that none waits in vain for a lock of one that is held.
"""

from __future__ import annotations

import threading
from typing import Protocol

from sealift.errors import LostError
from sealift.vmm.migration.clock import Clock

_RUN_S = 0.010
"""What vCPUs run at a time; QEMU's time slice (CPU_THROTTLE_TIMESLICE_NS)."""

_MOST = 99


class Holdable(Protocol):
    """vCPUs that can be kept out of guest mode."""

    def hold(self) -> None:
        """Get every vCPU out of guest mode and let none enter; does not wait."""

    def release(self) -> None:
        """Let them enter again."""


class CpuThrottle:
    """The throttle of one guest; thread-safe."""

    def __init__(self, vcpus: Holdable, clock: Clock) -> None:
        self._vcpus = vcpus
        self._clock = clock
        self._lock = threading.Lock()
        self._percentage = 0
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def percentage(self) -> int:
        """Share of the time in which the vCPUs are held; 0: the guest runs at full speed."""
        return self._percentage

    def set(self, percentage: int) -> None:
        """Change the share, up to 99; with 0 the guest runs at full speed when this returns."""
        with self._lock:
            self._percentage = max(0, min(percentage, _MOST))
            if self._percentage and self._thread is None:
                self._end = threading.Event()
                self._thread = threading.Thread(target=self._run, args=(self._end,), name="throttle", daemon=True)
                self._thread.start()
            elif not self._percentage and self._thread is not None:
                self._end.set()
                self._thread.join()
                self._thread = None

    def _run(self, end: threading.Event) -> None:
        try:
            while not self._clock.wait(end, _RUN_S):
                self._vcpus.hold()
                percentage = self._percentage
                self._clock.wait(end, _RUN_S * percentage / (100 - percentage))
                self._vcpus.release()
        except LostError:
            pass  # the platform is gone: that ends the guest, as its vCPUs find out themselves
        finally:
            self._vcpus.release()
