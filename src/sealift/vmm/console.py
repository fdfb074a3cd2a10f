"""The guest's console: what it printed last, and who is listening.

A guest prints byte by byte; listeners get whole lines, and what is no line yet (a prompt, the echo of a key) a moment
later: one timer a port is under way at a time, so that a busy console costs a few hundred wake-ups a second at most
and a silent one none.

Several devices print here, each at a port of its own, and nothing of one appears within a line of another's::

    serial ─────────► Port ──┐ a line, or its start that has waited for the rest
    virtio console ─► Port ──┴──────────────────────────────────────────────────► listeners
                              waits, while another port's line is unfinished there
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeAlias

PROMPT_S: Final = 0.005
"""How long an unfinished line waits for its rest: too short to be seen, and long enough for the bytes of a prompt."""

HOLD_S: Final = 0.2
"""How long one port's output waits for another's line at most: a prompt stands unfinished until somebody types."""

HISTORY_LIMIT: Final = 64 * 1024
"""Bytes kept for those who attach later: some hundred lines."""

_NEWLINE: Final = 0x0A
_LINE_END: Final = b"\r\n"
"""Ends a line in its device's place, on a raw terminal as well."""

Later: TypeAlias = Callable[[float, Callable[[], None]], None]
"""Makes a call so many seconds later, in another thread; never waits."""


@dataclass(slots=True, eq=False)
class _Output:
    """What a port has not shown yet; `timed`: it will be shown soon, `waits`: it is to be, once the line is free."""

    text: bytearray = field(default_factory=bytearray)
    timed: bool = False
    waits: bool = False


class Port:
    """Where one device prints; made by `Console.port`."""

    def __init__(self, collect: Callable[[bytes], None]) -> None:
        self._collect = collect

    def transmit(self, byte: int) -> None:
        """The device sent one byte."""
        self._collect(bytes((byte,)))

    def write(self, data: bytes) -> None:
        """The device sent bytes."""
        self._collect(data)


class Console:
    """Collects output by port and passes it to listeners; thread-safe. Listeners must not block."""

    def __init__(self) -> None:
        self._history = bytearray()
        self._outputs: list[_Output] = []
        self._unfinished: _Output | None = None  # whose line is, where listeners are
        self._listeners: list[Callable[[bytes], None]] = []
        self._lock = threading.Lock()
        self._later: Later | None = None
        self._holding = False

    def port(self) -> Port:
        """A port for another device."""
        output = _Output()
        with self._lock:
            self._outputs.append(output)
        return Port(partial(self._collect, output))

    def flush_by(self, later: Later) -> None:
        """Use this timer for lines that the guest does not finish; without one they wait for `flush`."""
        with self._lock:
            self._later = later
            for output in self._outputs:
                self._flush_soon(output)

    def flush(self) -> None:
        """Pass on what the guest has not finished (it has stopped, or leaves)."""
        with self._lock:
            for output in self._in_turn():
                while output.text:
                    self._emit(output)

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
            first, *others = [bytes(output.text) for output in self._in_turn()] or [b""]
            texts = [bytes(self._history) + first, *others]
        return [line for text in texts for line in text.decode(errors="replace").splitlines()][-lines:]

    def _in_turn(self) -> list[_Output]:
        """All ports, that of the unfinished line first."""
        return sorted(self._outputs, key=lambda output: output is not self._unfinished)

    # --- lines of one port -----------------------------------------------------------------------------------------

    def _collect(self, output: _Output, data: bytes) -> None:
        with self._lock:
            for byte in data:
                output.text.append(byte)
                if byte == _NEWLINE or len(output.text) >= HISTORY_LIMIT:
                    self._show(output)
                else:
                    self._flush_soon(output)

    def _flush_soon(self, output: _Output) -> None:
        if output.text and self._later is not None and not (output.timed or output.waits):
            output.timed = True
            self._later(PROMPT_S, partial(self._time_is_up, output))

    def _time_is_up(self, output: _Output) -> None:
        with self._lock:
            output.timed = False
            if output.text:
                self._show(output)

    # --- whose turn it is ------------------------------------------------------------------------------------------

    def _show(self, output: _Output) -> None:
        """Show it now, or when the other port's line is finished."""
        free = self._unfinished in {None, output}
        if free or self._later is None or len(output.text) >= HISTORY_LIMIT:
            self._emit(output)
            self._show_waiting()
            return
        output.waits = True
        if not self._holding:
            self._holding = True
            self._later(HOLD_S, self._hold_no_longer)

    def _show_waiting(self) -> None:
        for output in self._outputs:
            if output.waits and self._unfinished is None:
                self._emit(output)

    def _hold_no_longer(self) -> None:
        with self._lock:
            self._holding = False
            for output in self._outputs:
                if output.waits:
                    self._emit(output)

    def _emit(self, output: _Output) -> None:
        """Pass on its lines, or the start of one; another port's line is ended first."""
        if self._unfinished not in {None, output}:
            self._put(_LINE_END)
        end = output.text.rfind(b"\n") + 1
        data = bytes(output.text[: end or None])
        del output.text[: len(data)]
        output.waits = False
        self._unfinished = None if end else output
        self._put(data)
        self._flush_soon(output)

    def _put(self, data: bytes) -> None:
        self._history += data
        del self._history[:-HISTORY_LIMIT]
        for listener in self._listeners:
            listener(data)
