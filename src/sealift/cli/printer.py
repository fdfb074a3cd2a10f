"""Prints the guest's console in a thread of its own, so that a slow terminal or pipe never holds a vCPU up.

A guest may leave a line unfinished. Where our own sentences go to the same place, they begin a new one; where they
do not, the guest's output stays as it is, to the byte.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Iterator
from typing import BinaryIO, Final

BACKLOG_LIMIT: Final = 4096
"""Pieces (mostly lines) that wait to be printed: what a guest prints in a burst. Beyond it, output is left out."""

_END: Final = None


class LineKeeper:
    """Output that knows whether its last line was ended."""

    def __init__(self, output: BinaryIO) -> None:
        self._output = output
        self._shared = _shared_with_people(output)
        self._unfinished = False

    def write(self, data: bytes) -> None:
        """Print."""
        self._output.write(data)
        if data:
            self._unfinished = not data.endswith(b"\n")

    def flush(self) -> None:
        """Have everything printed."""
        self._output.flush()

    def end_line(self) -> None:
        """End a line that was left unfinished, for whoever prints there next."""
        if self._unfinished and self._shared:
            self.write(b"\n")
            self.flush()


def _shared_with_people(output: BinaryIO) -> bool:
    """Whether something else is printed there too: on a terminal, or where standard error goes as well."""
    try:
        return output.isatty() or os.path.sameopenfile(output.fileno(), sys.stderr.fileno())
    except (OSError, ValueError):
        return False  # no file at all, or a closed one


class Printer:
    """Writes to `output`, in order; `close` waits until everything is written."""

    def __init__(self, output: BinaryIO) -> None:
        self._output = LineKeeper(output)
        self._printing = threading.Lock()
        self._waiting: queue.Queue[bytes | None] = queue.Queue()
        self._left_out = 0
        self._thread = threading.Thread(target=self._run, name="printer", daemon=True)
        self._thread.start()

    def put(self, data: bytes) -> None:
        """Print soon; from any thread, without waiting."""
        if self._waiting.qsize() >= BACKLOG_LIMIT:
            self._left_out += len(data)
            return
        if self._left_out:
            note = f"\n[{self._left_out} bytes of console output were left out]\n".encode()
            self._left_out = 0
            self._waiting.put(note)
        self._waiting.put(data)

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Print nothing meanwhile, and let whoever prints now begin a line."""
        with self._printing:
            with contextlib.suppress(OSError, ValueError):  # nobody reads there any more
                self._output.end_line()
            yield

    def close(self, patience_s: float = 2.0) -> None:
        """Print what is left; a reader that takes longer than `patience_s` misses the rest."""
        self._waiting.put(_END)
        self._thread.join(patience_s)

    def _run(self) -> None:
        try:
            while (data := self._waiting.get()) is not _END:
                with self._printing:
                    self._output.write(data)
                    if self._waiting.empty():
                        self._output.flush()
            with self._printing:
                self._output.end_line()
                self._output.flush()
        except (OSError, ValueError):
            # Nobody reads any more (a closed pipe); the guest runs on, and its console socket still has it all.
            while self._waiting.get() is not _END:
                pass
