"""The two ends of a migration's byte stream over one socket.

Everything a source sends goes through one `StreamWriter`; whoever wants to see the wire looks there. A `StreamReader`
has a small buffer for headers and shared pages; records go from the socket straight to where they belong.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sealift.errors import LostError
from sealift.vmm.memory import Buffer
from sealift.vmm.migration.transport import SILENCE_LIMIT_S

_BUFFER = 256 * 1024
"""Bytes a reader holds at most: sixty shared pages at once, and any header or state."""

_GLANCE = 64
"""Bytes asked for when only a header is due: enough for most, little to copy if it was a record's front."""


class EndedError(LostError):
    """The other side closed the connection."""


class SilentError(LostError):
    """The other side is connected, and does not answer."""


class StreamWriter:
    """Writes to a socket, `spend` (of a `Throttle`) willing.

    Attributes:
        sent: bytes so far.
    """

    def __init__(self, sock: socket.socket, spend: Callable[[int], None]) -> None:
        self._sock = sock
        self._spend = spend
        self.sent = 0

    def write(self, *parts: Buffer) -> None:
        """Send the parts one behind the other, without joining them.

        Raises:
            EndedError: the other side closed the connection, or takes nothing any more.
        """
        left = [memoryview(part) for part in parts]
        length = sum(part.nbytes for part in left)
        self._spend(length)
        try:
            while left:
                done = self._sock.sendmsg(left, (), socket.MSG_NOSIGNAL)
                while left and done >= left[0].nbytes:
                    done -= left.pop(0).nbytes
                if left:
                    left[0] = left[0][done:]
        except BlockingIOError as error:
            raise EndedError(f"the other side has taken nothing for {SILENCE_LIMIT_S} s") from error
        except OSError as error:
            raise EndedError(f"the connection broke ({error.strerror})") from error
        self.sent += length


class StreamReader:
    """Reads from a socket.

    Attributes:
        received: bytes handed out so far.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._memory = memoryview(bytearray(_BUFFER))
        self._start = self._end = 0
        self._limit_s: float | None = None
        self._until = 0.0
        self.received = 0

    @contextmanager
    def within(self, limit_s: float) -> Iterator[None]:
        """What is read in here must all have come within `limit_s`; else the reading method raises SilentError."""
        self._limit_s, self._until = limit_s, time.monotonic() + limit_s
        try:
            yield
        finally:
            self._limit_s = None

    def take(self, length: int) -> bytes:
        """Exactly `length` bytes; the caller limits how many.

        Raises:
            EndedError: the other side closed the connection before.
        """
        if length > _BUFFER:
            large = bytearray(length)
            self.into(memoryview(large))
            return bytes(large)
        small = bytes(self.peek(length, max(length, _GLANCE))[:length])
        self.skip(length)
        return small

    def into(self, view: memoryview) -> None:
        """Fill `view`, straight from the socket.

        Raises:
            EndedError: the other side closed the connection before.
        """
        held = min(self._end - self._start, len(view))
        view[:held] = self._memory[self._start : self._start + held]
        self.skip(held)
        while held < len(view):
            got = self._receive(view[held:], socket.MSG_WAITALL)
            held += got
            self.received += got

    def peek(self, least: int, most: int) -> memoryview:
        """What lies in the buffer, at least `least` bytes; asks the socket for no more than `most`.

        Raises:
            EndedError: the other side closed the connection before.
        """
        if self._start + most > _BUFFER:
            self._compact()
        while self._end - self._start < least:
            self._end += self._receive(self._memory[self._end : self._start + most], 0)
        return self._memory[self._start : self._end]

    def skip(self, length: int) -> None:
        """Go on behind `length` bytes that were peeked at."""
        self._start += length
        self.received += length
        if self._start == self._end:
            self._start = self._end = 0

    def _compact(self) -> None:
        held = bytes(self._memory[self._start : self._end])
        self._memory[: len(held)] = held
        self._start, self._end = 0, len(held)

    def _receive(self, view: memoryview, flags: int) -> int:
        if self._limit_s is not None:
            self._await(self._limit_s)
            flags = 0  # what lies there, and no waiting for the rest
        try:
            got = self._sock.recv_into(view, 0, flags)
        except OSError as error:
            raise EndedError(f"the connection broke ({error.strerror})") from error
        if not got:
            raise EndedError("the connection was closed")
        return got

    def _await(self, limit_s: float) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        if not poll.poll(max(0.0, self._until - time.monotonic()) * 1e3):
            raise SilentError(f"the other side has not answered for {limit_s:.0f} s")


def readable_now(sock: socket.socket) -> bool:
    """Whether the other side has said something, or has closed the connection; does not wait."""
    try:
        sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def shut_down(sock: socket.socket) -> None:
    """Wake whoever waits on this connection, on both sides."""
    with contextlib.suppress(OSError):  # not connected any more: nobody waits
        sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def bulk_work() -> Iterator[None]:
    """Run this thread as a batch job: longer turns on the processor, fewer switches (measured).

    A thread that was given another policy than the usual one (`chrt`) keeps it.
    """
    thread = threading.get_native_id()
    usual = os.sched_getscheduler(thread) == os.SCHED_OTHER
    if usual:
        _schedule(thread, os.SCHED_BATCH)
    try:
        yield
    finally:
        if usual:
            _schedule(thread, os.SCHED_OTHER)


def _schedule(thread: int, policy: int) -> None:
    with contextlib.suppress(OSError):  # a sandbox may forbid it; it is only faster
        os.sched_setscheduler(thread, policy, os.sched_param(0))
