"""Prints the guest's console in a thread of its own, so that a slow terminal or pipe never holds a vCPU up."""

from __future__ import annotations

import queue
import threading
from typing import BinaryIO, Final

BACKLOG_LIMIT: Final = 4096
"""Pieces (mostly lines) that wait to be printed: what a guest prints in a burst. Beyond it, output is left out."""

_END: Final = None


class Printer:
    """Writes to `output`, in order; `close` waits until everything is written."""

    def __init__(self, output: BinaryIO) -> None:
        self._output = output
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

    def close(self, patience_s: float = 2.0) -> None:
        """Print what is left; a reader that takes longer than `patience_s` misses the rest."""
        self._waiting.put(_END)
        self._thread.join(patience_s)

    def _run(self) -> None:
        try:
            while (data := self._waiting.get()) is not _END:
                self._output.write(data)
                if self._waiting.empty():
                    self._output.flush()
            self._output.flush()
        except (OSError, ValueError):
            # Nobody reads any more (a closed pipe); the guest runs on, and its console socket still has it all.
            while self._waiting.get() is not _END:
                pass
