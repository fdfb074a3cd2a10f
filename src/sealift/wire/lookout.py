"""Looking for a moment before going to sleep: what it may cost, and when it is worth it.

Two processes that take turns over memory which both map save two system calls and a change of processes if who waits
still looks when its turn comes. Where more wants to run than there are processors, looking only takes time from whom it
waits for. So who looks keeps account, and hardly looks any more once it has mostly been in vain.
"""

from __future__ import annotations

import os
import platform as host
import time
from collections.abc import Callable
from typing import Final

PATIENCE_NS: Final = 100_000 if host.machine() in ("x86_64", "AMD64") else 0
"""How long one looks: what a round trip with two wake-ups takes on a virtual machine whose other processor was idle (50
to 90 us measured), so that who looks sees its message even when the other one sleeps. Only where stores keep their
order; elsewhere nobody looks."""

SAVED_NS: Final = 5_000
"""What a message costs less that was found by looking, at least: two system calls and a change of processes."""

PAID_BACK_NS: Final = 500
"""What each message that one sleeps for pays back of what looking in vain has cost: so much it costs a message in the
long run. Where more wants to run than there are processors, milliseconds are lost at a time, to whoever else runs."""

CREDIT_NS: Final = 1_000_000
"""What may be lost before one stops looking: who computes for a while between its messages loses little."""


class Lookout:
    """One who looks; in one thread."""

    def __init__(self, patience_ns: int = PATIENCE_NS) -> None:
        self._patience_ns = patience_ns
        self._balance_ns = CREDIT_NS  # of what looking has saved and cost

    def sees(self, there: Callable[[], bool]) -> bool:
        """Look until it is there, or for as long as that is worth; whether it is."""
        if not self._patience_ns or there():
            return there()
        if self._balance_ns < 0:
            self._balance_ns += PAID_BACK_NS
            return False
        clock = time.monotonic_ns
        begun, took = clock(), 0
        while not there() and took <= self._patience_ns:
            os.sched_yield()  # the other one may need this very processor
            took = clock() - begun
        if took > self._patience_ns:
            self._balance_ns -= took
        elif self._balance_ns < CREDIT_NS:
            self._balance_ns += SAVED_NS
        return there()
