"""An alarm: what went wrong in one thread ends another one's wait for the network."""

from __future__ import annotations

import os
import threading

from sealift.errors import SealiftError


class Alarm:
    """Can be sounded once, by any thread; a `StreamReader` that heeds it ends its waits.

    Attributes:
        error: why it was sounded; None while it was not.
    """

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self.error: SealiftError | None = None

    def fileno(self) -> int:
        """A descriptor that can be read once it was sounded."""
        return self._fd

    def sound(self, error: SealiftError) -> None:
        """Sound it; later errors follow from the first, and are not kept."""
        with self._lock:
            if self.error is None:
                self.error = error
                os.eventfd_write(self._fd, 1)

    def check(self) -> None:
        """Raise the error, if it was sounded."""
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Let go of the descriptor."""
        os.close(self._fd)
