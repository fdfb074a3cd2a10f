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
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from sealift.errors import LostError
from sealift.vmm.memory import Buffer
from sealift.vmm.migration.alarm import Alarm
from sealift.vmm.migration.tls import TlsSocket
from sealift.vmm.migration.transport import SILENCE_LIMIT_S

_BUFFER = 256 * 1024
"""Bytes a reader holds at most: sixty shared pages at once, and any header or state."""

_GLANCE = 64
"""Bytes asked for when only a header is due: enough for most, little to copy if it was a record's front."""

_ALMOST_NOTHING_S = 0.001
"""A time limit that has passed; 0 would mean something else to a socket."""


class EndedError(LostError):
    """The other side closed the connection, or a file has no more."""


class SilentError(LostError):
    """The other side is connected, and does not answer."""


class Writer(Protocol):
    """Where a stream goes.

    Attributes:
        sent: bytes so far.
    """

    sent: int

    def write(self, *parts: Buffer) -> None:
        """Write the parts one behind the other."""


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


class ByteReader(ABC):
    """Reads a stream of bytes, wherever they come from.

    Attributes:
        received: bytes handed out so far.
    """

    def __init__(self) -> None:
        self._memory = memoryview(bytearray(_BUFFER))
        self._start = self._end = 0
        self.received = 0

    @abstractmethod
    def _receive(self, view: memoryview, *, whole: bool) -> int:
        """Fill the front of `view`, if possible all of it when it is wanted `whole`; how many bytes.

        Raises:
            EndedError: there are no more.
        """

    def take(self, length: int) -> bytes:
        """Exactly `length` bytes; the caller limits how many.

        Raises:
            EndedError: there are no more.
        """
        if length > _BUFFER:
            large = bytearray(length)
            self.into(memoryview(large))
            return bytes(large)
        small = bytes(self.peek(length, max(length, _GLANCE))[:length])
        self.skip(length)
        return small

    def into(self, view: memoryview) -> None:
        """Fill `view`, without a copy in between.

        Raises:
            EndedError: there are no more.
        """
        held = min(self._end - self._start, len(view))
        view[:held] = self._memory[self._start : self._start + held]
        self.skip(held)
        while held < len(view):
            got = self._receive(view[held:], whole=True)
            held += got
            self.received += got

    def peek(self, least: int, most: int) -> memoryview:
        """What lies in the buffer, at least `least` bytes; asks for no more than `most`.

        Raises:
            EndedError: there are no more.
        """
        if self._start + most > _BUFFER:
            self._compact()
        while self._end - self._start < least:
            self._end += self._receive(self._memory[self._end : self._start + most], whole=False)
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


class StreamReader(ByteReader):
    """Reads from a socket."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self._sock = sock
        self._limit_s: float | None = None
        self._until = 0.0
        self._alarm: Alarm | None = None

    def heed(self, alarm: Alarm | None) -> None:
        """From now on `alarm`, if any, ends every wait, with its own error."""
        self._alarm = alarm

    @contextmanager
    def within(self, limit_s: float) -> Iterator[None]:
        """What is read in here must all have come within `limit_s`; else the reading method raises SilentError."""
        self._limit_s, self._until = limit_s, time.monotonic() + limit_s
        try:
            yield
        finally:
            self._limit_s = None
            if isinstance(self._sock, TlsSocket) and self._sock.fileno() >= 0:
                self._sock.settimeout(None)

    def glance(self, limit_s: float) -> int:
        """The first byte, which stays where it is: in the socket.

        Raises:
            SilentError: none came within `limit_s`.
            EndedError: the other side closed the connection.
        """
        with self.within(limit_s):
            self._await()
        try:
            first = self._sock.recv(1, socket.MSG_PEEK)
        except OSError as error:
            raise EndedError(f"the connection broke ({error.strerror})") from error
        if not first:
            raise EndedError("the connection was closed")
        return first[0]

    def comes_before(self, fd: int) -> bool:
        """Wait until there is more to read, or descriptor `fd` is readable: False, if that is."""
        if self._start < self._end or (isinstance(self._sock, TlsSocket) and self._sock.pending()):
            return True
        poll = select.poll()
        for each in (self._sock.fileno(), fd):
            poll.register(each, select.POLLIN)
        return all(ready != fd for ready, _ in poll.poll())

    def _receive(self, view: memoryview, *, whole: bool) -> int:
        flags = socket.MSG_WAITALL if whole else 0
        if self._limit_s is not None or self._alarm is not None:
            self._await()
            flags = 0  # what lies there, and no waiting for the rest
        try:
            got = self._sock.recv_into(view, 0, flags)
        except TimeoutError:
            raise self._silent() from None
        except OSError as error:
            raise EndedError(f"the connection broke ({error.strerror})") from error
        if not got:
            raise EndedError("the connection was closed")
        return got

    def _await(self) -> None:
        """Wait until something is there; with TLS what is there may be a part, for which the limit counts as well."""
        left_s = None if self._limit_s is None else max(0.0, self._until - time.monotonic())
        if isinstance(self._sock, TlsSocket):
            if self._sock.pending():
                return
            if left_s is not None:
                self._sock.settimeout(left_s or _ALMOST_NOTHING_S)
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        if self._alarm is not None:
            poll.register(self._alarm, select.POLLIN)
        ready = poll.poll(None if left_s is None else left_s * 1e3)
        if self._alarm is not None:
            self._alarm.check()
        if not ready:
            raise self._silent()

    def _silent(self) -> SilentError:
        return SilentError(f"the other side has not answered for {self._limit_s or 0.0:.0f} s")


def readable_now(sock: socket.socket) -> bool:
    """Whether the other side has said something, or has closed the connection; does not wait."""
    return (isinstance(sock, TlsSocket) and sock.pending() > 0) or stirred(sock)


def stirred(sock: socket.socket) -> bool:
    """Whether anything has come over the connection below TLS, be it its end; from any thread, does not wait.

    Another thread may just be sending: the socket's own timeout, which that sets, must not count here.
    """
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


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
