"""A token bucket: keeps a stream below a rate without making it jerk."""

from __future__ import annotations

import threading

from sealift.vmm.migration.clock import Clock

_BURST_S = 0.1
"""What may be sent at once, as time at the full rate; QEMU accounts in windows of the same length."""


class Throttle:
    """Keeps those who call `spend` below `rate` bytes a second, all together; 0 is no limit.

    `wake` ends a wait early: the stream is being given up.
    """

    def __init__(self, rate: int, clock: Clock, wake: threading.Event) -> None:
        self._rate = rate
        self._lifted = False
        self._clock = clock
        self._wake = wake
        self._lock = threading.Lock()
        self._credit = rate * _BURST_S
        self._at = clock.monotonic()

    def lift(self) -> None:
        """No limit from now on, whatever `limit` says: the guest is stopped, and waiting costs downtime."""
        self._lifted = True

    def limit(self, rate: int) -> None:
        """Another rate from now on; who waits already waits that long."""
        with self._lock:
            self._refill()
            self._rate = rate
            self._credit = min(self._credit, rate * _BURST_S)

    def spend(self, length: int) -> None:
        """`length` bytes are about to be sent; wait while they are too many."""
        with self._lock:
            rate = self._rate
            if not rate or self._lifted:
                return
            self._refill()
            self._credit -= length
            debt = -self._credit
        if debt > 0:
            self._clock.wait(self._wake, debt / rate)

    def _refill(self) -> None:
        now = self._clock.monotonic()
        self._credit = min(self._credit + (now - self._at) * self._rate, self._rate * _BURST_S)
        self._at = now
