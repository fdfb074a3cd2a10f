"""Where a target meets whoever connects: only who introduces itself as a source gets any further, or as part of one.

Strangers (a port scan, a lost client, a source of another version) are told why and dropped, each in a thread of its
own and within a limit, so that none of them keeps the real source waiting. With credentials, TLS comes first: who does
not pass it is not listened to.
"""

from __future__ import annotations

import contextlib
import hmac
import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from sealift.errors import LostError, RefusedError, SealiftError, sentence
from sealift.vmm.migration import examining
from sealift.vmm.migration.examining import Examiner
from sealift.vmm.migration.joining import Side
from sealift.vmm.migration.patience import Patience
from sealift.vmm.migration.receiving import Introduction, StreamIn
from sealift.vmm.migration.route import Listening
from sealift.vmm.migration.streamio import EndedError, StreamReader, shut_down
from sealift.vmm.migration.tls import TLS_UNWANTED, TLS_WANTED, Credentials, begins_tls, handshake
from sealift.wire import side_connection
from sealift.wire.handover import TAKEN, Refusal
from sealift.wire.inquiry import MAGIC
from sealift.wire.side_connection import SideFront

_STRANGERS = 16
"""Introductions at once; more wait in the system's queue."""

_FAREWELL_LIMIT_S = 5.0
"""How long a target that refuses waits for the source to have read why, or to say anything else."""

_FAREWELL_TOTAL_S = 30.0
"""In all: who has no more to say than a byte every few seconds takes a place that a source needs."""

_FAREWELL_READS = 1024
"""Reads of 64 KiB meanwhile: far more than a source has underway that looks for a refusal between two records."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A source that introduced itself."""

    sock: socket.socket
    reader: StreamReader
    stream: StreamIn
    introduction: Introduction


class Reception:
    """Meets everybody who connects to `listener`, from now to `close`, which closes that as well.

    Who only asks (`sealift.wire.inquiry`) is answered by `examiner`, and goes.
    """

    def __init__(
        self,
        listener: Listening,
        patience: Patience,
        examiner: Examiner,
        credentials: Credentials | None = None,
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        """With `credentials` everybody must speak TLS; `notify` gets sentences about who could not."""
        self._listener = listener
        self._examiner = examiner
        self._notify = notify
        self._credentials = credentials
        self._limit_s = patience.introduction_s
        self._callers: queue.SimpleQueue[Caller | None] = queue.SimpleQueue()
        self._room = threading.BoundedSemaphore(_STRANGERS)
        self._lock = threading.Lock()
        self._present: dict[threading.Thread, socket.socket] = {}
        self._closed = False
        self._came = threading.Condition()
        self._ticket = b""
        self._due: set[int] = set()
        self._sides: list[Side] = []
        self._listening = True
        self._accepting = threading.Thread(target=self._accept, name="reception", daemon=True)
        self._accepting.start()

    def next(self, limit_s: float | None = None) -> Caller:
        """Wait for a source.

        Raises:
            LostError: listening ended, or none came for `limit_s`.
        """
        try:
            caller = self._callers.get(timeout=limit_s)
        except queue.Empty:
            raise LostError(f"no source came to {self._listener.address} for {limit_s:.0f} s") from None
        if caller is None:
            raise LostError(f"no source came to {self._listener.address} before listening ended")
        return caller

    def expect(self, ticket: bytes, connections: int) -> None:
        """A source's further connections may come, which show this ticket; `sides` waits for them."""
        with self._came:
            self._ticket, self._due = ticket, set(range(1, connections))

    def sides(self, limit_s: float) -> tuple[Side, ...]:
        """Wait until all connections that are expected have come, and give them away.

        Raises:
            LostError: they have not after `limit_s`, or listening ended.
        """
        with self._came:
            self._came.wait_for(lambda: not self._due or not self._listening, limit_s)
            if self._due:
                missing = ", ".join(map(str, sorted(self._due)))
                raise LostError(f"the source's connection for channel {missing} did not come")
            sides, self._sides = tuple(self._sides), []
            return sides

    def turn_away(self, caller: Caller, error: SealiftError) -> None:
        """Tell a source why it cannot come here, without waiting until it has heard."""
        self._room.acquire()
        self._attend(caller.sock, lambda: _dismiss(caller.sock, error))

    def close(self) -> None:
        """Stop listening, and drop everybody whom `next` has not given away."""
        self._listener.close()
        with self._lock:
            self._closed = True
            for sock in self._present.values():
                shut_down(sock)
        self._accepting.join()
        for thread in self._threads():
            thread.join()
        while not self._callers.empty():
            caller = self._callers.get()
            if caller is not None:
                caller.sock.close()
        self._callers.put(None)  # for who waits in `next`
        for side in self._sides:
            side.sock.close()
        self._sides.clear()

    def _accept(self) -> None:
        try:
            while True:
                sock = self._listener.accept()
                self._room.acquire()
                self._attend(sock, lambda sock=sock: self._meet(sock))  # type: ignore[misc]  # binds this very socket
        except LostError:
            self._callers.put(None)
            with self._came:
                self._listening = False
                self._came.notify_all()

    def _attend(self, sock: socket.socket, work: Callable[[], None]) -> None:
        """Work with a connection in a thread of its own; a place in the room was taken for it."""

        def attend() -> None:
            try:
                work()
            finally:
                with self._lock:
                    del self._present[threading.current_thread()]
                self._room.release()

        thread = threading.Thread(target=attend, name="stranger", daemon=True)
        with self._lock:
            self._present[thread] = sock
            if self._closed:
                shut_down(sock)
        thread.start()

    def _threads(self) -> tuple[threading.Thread, ...]:
        with self._lock:
            return tuple(self._present)

    def _meet(self, raw: socket.socket) -> None:
        with ExitStack() as undo:
            undo.callback(raw.close)
            try:
                sock = self._secured(raw)
                undo.callback(sock.close)
                self._listen_to(sock)
            except EndedError:
                return  # it left: nobody is there to be told
            undo.pop_all()

    def _secured(self, raw: socket.socket) -> socket.socket:
        """The connection, through TLS if this target has credentials; one that cannot be so is told.

        Raises:
            EndedError: it cannot be.
        """
        try:
            first = StreamReader(raw).glance(self._limit_s)
            if begins_tls(first) != (self._credentials is not None):
                raise RefusedError(TLS_WANTED if self._credentials else TLS_UNWANTED)
        except EndedError:
            raise
        except SealiftError as error:
            say_farewell(raw, Refusal.of(error))
            raise EndedError("it was sent away") from error
        if self._credentials is None:
            return raw
        sock = self._credentials.accept(raw)
        self._stands_for_itself(sock)
        try:
            handshake(sock, self._limit_s)
        except SealiftError as error:
            sock.close()
            self._notify(f"a source was sent away: {sentence(error)}")
            raise EndedError("it was sent away") from error  # TLS has told it why
        return sock

    def _stands_for_itself(self, sock: socket.socket) -> None:
        """From now on this is the connection that `close` has to end."""
        with self._lock:
            self._present[threading.current_thread()] = sock
            if self._closed:
                shut_down(sock)

    def _listen_to(self, sock: socket.socket) -> None:
        reader = StreamReader(sock)
        try:
            with reader.within(self._limit_s):
                met = self._met(sock, reader)
            match met:
                case SideFront():
                    self._join(met, sock, reader)
                case Caller():
                    self._callers.put(met)
                case None:
                    self._answer(sock, reader)
        except EndedError:
            raise
        except SealiftError as error:
            _dismiss(sock, error)

    def _met(self, sock: socket.socket, reader: StreamReader) -> Caller | SideFront | None:
        """Who it is: a source, a connection beside one, or None: somebody who only asks."""
        begins = bytes(reader.peek(len(MAGIC), side_connection.FRONT_SIZE))
        if begins.startswith(MAGIC):
            return None
        if begins.startswith(side_connection.MAGIC):
            return SideFront.decode(reader.take(side_connection.FRONT_SIZE))
        stream = StreamIn(reader)
        return Caller(sock, reader, stream, stream.introduction())

    def _answer(self, sock: socket.socket, reader: StreamReader) -> None:
        def send(data: bytes) -> None:
            try:
                sock.sendall(data)
            except OSError as error:
                raise EndedError("the source has left") from error

        examining.serve(reader, send, self._examiner, self._limit_s)
        sock.close()

    def _join(self, front: SideFront, sock: socket.socket, reader: StreamReader) -> None:
        """Keep a connection that is expected.

        Raises:
            RefusedError: it is not.
        """
        with self._came:
            if not self._ticket or not hmac.compare_digest(front.ticket, self._ticket):
                raise RefusedError("no migration here waits for this connection")
            if front.channel not in self._due:
                raise RefusedError(f"channel {front.channel} of this migration has its connection")
            self._due.discard(front.channel)
            self._sides.append(Side(front.channel, sock, reader))
            self._came.notify_all()


def _dismiss(sock: socket.socket, error: SealiftError) -> None:
    with contextlib.closing(sock):
        say_farewell(sock, Refusal.of(error))


def say_farewell(sock: socket.socket, refusal: Refusal, total_s: float = _FAREWELL_TOTAL_S) -> bool:
    """Send the refusal and read on until the source has gone: closing over unread bytes could destroy it.

    Returns whether the source's last word was that it took the refusal's token.
    """
    sink, last = bytearray(1 << 16), b""
    with contextlib.suppress(OSError):  # the source is gone: nobody is left to be told
        sock.settimeout(_FAREWELL_LIMIT_S)
        sock.sendall(refusal.frame().encode())
        sock.shutdown(socket.SHUT_WR)
        until = time.monotonic() + total_s
        for _ in range(_FAREWELL_READS):
            if time.monotonic() >= until:
                break
            length = sock.recv_into(sink)
            if not length:
                break
            last = (last + sink[:length])[-len(TAKEN.encode()) :]
    return last == TAKEN.encode()
