"""Cutting a byte stream into JSON objects.

QMP needs no line ends: a client may spread an object over lines or send two in one write. So objects are found by
their braces; what they hold is the decoder's business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from sealift.errors import StreamError

REQUEST_LIMIT: Final = 256 * 1024
"""Bytes of one request: none that exists needs a hundredth; QEMU itself stops at 64 MiB."""

DEPTH_LIMIT: Final = 64
"""Objects and lists in one another: what exists needs ten, and a decoder that recurses has a stack to lose."""

_MARKS: Final = re.compile(rb'[{}\[\]"\\]')
_OPENING: Final = b"{["


@dataclass(frozen=True, slots=True)
class Frame:
    """One JSON object's bytes (or a line that is none), and how deeply objects and lists lie in one another there."""

    data: bytes
    depth: int

    @property
    def is_object(self) -> bool:
        """Whether it looks like a JSON object; what it holds may still be malformed."""
        return self.data.startswith(b"{")


class Framer:
    """Collects bytes; gives back whole JSON objects (or lines that are none, for the decoder to complain about)."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._restart()

    def feed(self, data: bytes) -> list[Frame]:
        """The objects that `data` completes.

        Raises:
            StreamError: an object is over the limit; the stream cannot be read any further.
        """
        self._buffer += data
        frames = []
        while (end := self._end_of_frame()) is not None:
            frame = Frame(bytes(self._buffer[:end]).strip(), self._deepest)
            del self._buffer[:end]
            self._restart()
            if frame.data:
                frames.append(frame)
        if len(self._buffer) > REQUEST_LIMIT:
            raise StreamError(f"a QMP request is longer than {REQUEST_LIMIT} bytes")
        return frames

    def _restart(self) -> None:
        self._scanned = 0
        self._depth = 0
        self._deepest = 0
        self._in_string = False

    def _end_of_frame(self) -> int | None:
        """Index behind the first whole frame; remembers how far it looked."""
        if not self._depth and not self._begins_with_bracket():
            line = self._buffer.find(b"\n")
            return None if line < 0 else line + 1
        while (mark := _MARKS.search(self._buffer, self._scanned)) is not None:
            self._scanned = mark.end()
            match mark.group():
                case b"\\":
                    if self._scanned == len(self._buffer):
                        self._scanned -= 1  # what it escapes has not arrived yet
                        return None
                    self._scanned += 1
                case b'"':
                    self._in_string = not self._in_string
                case _ if self._in_string:
                    continue
                case bracket:
                    self._depth += 1 if bracket in {b"{", b"["} else -1
                    self._deepest = max(self._deepest, self._depth)
                    if self._depth == 0:
                        return self._scanned
        self._scanned = len(self._buffer)
        return None

    def _begins_with_bracket(self) -> bool:
        stripped = self._buffer.lstrip()
        if len(stripped) != len(self._buffer):
            self._buffer[:] = stripped
        return not self._buffer or self._buffer[0] in _OPENING
