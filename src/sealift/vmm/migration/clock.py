"""Time for migrations, injected so that timeouts and rates are tested without waiting."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """A clock and a way to wait by it."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""

    def wait(self, wake: threading.Event, seconds: float) -> bool:
        """Wait until `wake` is set, `seconds` at most; whether it is set."""


class SystemClock:
    """The machine's clock."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment."""
        return time.monotonic()

    def wait(self, wake: threading.Event, seconds: float) -> bool:
        """Wait until `wake` is set, `seconds` at most; whether it is set."""
        return wake.wait(seconds)
