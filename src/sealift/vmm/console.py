"""The guest's console: what it printed last, and who is listening."""

from __future__ import annotations

import threading
from collections.abc import Callable

HISTORY_LIMIT = 64 * 1024
"""Bytes kept for those who attach later: some hundred lines."""


class Console:
    """Collects output bytes and passes them to listeners; thread-safe. Listeners must not block."""

    def __init__(self) -> None:
        self._history = bytearray()
        self._line = bytearray()
        self._listeners: list[Callable[[bytes], None]] = []
        self._lock = threading.Lock()

    def transmit(self, byte: int) -> None:
        """The guest sent one byte; listeners get whole lines."""
        with self._lock:
            self._line.append(byte)
            if byte == 0x0A or len(self._line) >= HISTORY_LIMIT:
                self._emit()

    def flush(self) -> None:
        """Pass on a line that the guest has not finished (it waits for input, or stopped)."""
        with self._lock:
            if self._line:
                self._emit()

    def _emit(self) -> None:
        data = bytes(self._line)
        self._line.clear()
        self._history += data
        del self._history[:-HISTORY_LIMIT]
        for listener in self._listeners:
            listener(data)

    def listen(self, listener: Callable[[bytes], None]) -> bytes:
        """Call `listener` with all further output; returns what was printed so far."""
        with self._lock:
            self._listeners.append(listener)
            return bytes(self._history)

    def unlisten(self, listener: Callable[[bytes], None]) -> None:
        """Stop calling it."""
        with self._lock:
            self._listeners.remove(listener)

    def tail(self, lines: int) -> list[str]:
        """The last lines, without line ends."""
        with self._lock:
            return (self._history + self._line).decode(errors="replace").splitlines()[-lines:]
