"""The guest's console: what it printed last, and who is listening.

A guest prints byte by byte; listeners get whole lines, and what is no line yet (a prompt, the echo of a key) a moment
later: one timer is under way at a time, so that a busy console costs a few hundred wake-ups a second at most and a
silent one none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeAlias

PROMPT_S = 0.005
"""How long an unfinished line waits for its rest: too short to be seen, and long enough for the bytes of a prompt."""

HISTORY_LIMIT = 64 * 1024
"""Bytes kept for those who attach later: some hundred lines."""


Later: TypeAlias = Callable[[float, Callable[[], None]], None]
"""Makes a call so many seconds later, in another thread; never waits."""


class Console:
    """Collects output bytes and passes them to listeners; thread-safe. Listeners must not block."""

    def __init__(self) -> None:
        self._history = bytearray()
        self._line = bytearray()
        self._listeners: list[Callable[[bytes], None]] = []
        self._lock = threading.Lock()
        self._later: Later | None = None
        self._timed = False

    def flush_by(self, later: Later) -> None:
        """Use this timer for lines that the guest does not finish; without one they wait for `flush`."""
        with self._lock:
            self._later = later
            self._flush_soon()

    def transmit(self, byte: int) -> None:
        """The guest sent one byte."""
        with self._lock:
            self._line.append(byte)
            if byte == 0x0A or len(self._line) >= HISTORY_LIMIT:
                self._emit()
            elif not self._timed:
                self._flush_soon()

    def _flush_soon(self) -> None:
        if self._line and self._later is not None:
            self._timed = True
            self._later(PROMPT_S, self._time_is_up)

    def _time_is_up(self) -> None:
        with self._lock:
            self._timed = False
            if self._line:
                self._emit()

    def flush(self) -> None:
        """Pass on a line that the guest has not finished (it has stopped, or leaves)."""
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
