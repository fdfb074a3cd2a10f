"""Where a target meets whoever connects: only one that introduces itself as a source gets any further.

Strangers (a port scan, a lost client, a source of another version) are told why and dropped, each in a thread of its
own and within a limit, so that none of them keeps the real source waiting.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from sealift.errors import LostError, SealiftError
from sealift.vmm.migration import examining
from sealift.vmm.migration.examining import Examiner
from sealift.vmm.migration.patience import Patience
from sealift.vmm.migration.receiving import Introduction, StreamIn
from sealift.vmm.migration.streamio import EndedError, StreamReader, shut_down
from sealift.vmm.migration.transport import Listener
from sealift.wire.handover import TAKEN, Refusal
from sealift.wire.inquiry import MAGIC

_STRANGERS = 16
"""Introductions at once; more wait in the system's queue."""

_FAREWELL_LIMIT_S = 5.0
"""How long a target that refuses waits for the source to have read why."""

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

    def __init__(self, listener: Listener, patience: Patience, examiner: Examiner) -> None:
        self._listener = listener
        self._examiner = examiner
        self._limit_s = patience.introduction_s
        self._callers: queue.SimpleQueue[Caller | None] = queue.SimpleQueue()
        self._room = threading.BoundedSemaphore(_STRANGERS)
        self._lock = threading.Lock()
        self._present: dict[threading.Thread, socket.socket] = {}
        self._closed = False
        self._accepting = threading.Thread(target=self._accept, name="reception", daemon=True)
        self._accepting.start()

    def next(self) -> Caller:
        """Wait for a source.

        Raises:
            LostError: listening ended.
        """
        caller = self._callers.get()
        if caller is None:
            raise LostError(f"no source came to {self._listener.address} before listening ended")
        return caller

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

    def _accept(self) -> None:
        try:
            while True:
                sock = self._listener.accept()
                self._room.acquire()
                self._attend(sock, lambda sock=sock: self._meet(sock))  # type: ignore[misc]  # binds this very socket
        except LostError:
            self._callers.put(None)

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

    def _meet(self, sock: socket.socket) -> None:
        reader = StreamReader(sock)
        stream = StreamIn(reader)
        try:
            with reader.within(self._limit_s):
                asks = bytes(reader.peek(len(MAGIC), len(MAGIC))[: len(MAGIC)]) == MAGIC
            if asks:
                self._answer(sock, reader)
                return
            with reader.within(self._limit_s):
                introduction = stream.introduction()
        except EndedError:
            sock.close()  # it left: nobody is there to be told
        except SealiftError as error:
            _dismiss(sock, error)
        except BaseException:
            sock.close()
            raise
        else:
            self._callers.put(Caller(sock, reader, stream, introduction))

    def _answer(self, sock: socket.socket, reader: StreamReader) -> None:
        def send(data: bytes) -> None:
            try:
                sock.sendall(data)
            except OSError as error:
                raise EndedError("the source has left") from error

        examining.serve(reader, send, self._examiner, self._limit_s)
        sock.close()


def _dismiss(sock: socket.socket, error: SealiftError) -> None:
    with contextlib.closing(sock):
        say_farewell(sock, Refusal.of(error))


def say_farewell(sock: socket.socket, refusal: Refusal) -> bool:
    """Send the refusal and read on until the source has gone: closing over unread bytes could destroy it.

    Returns whether the source's last word was that it took the refusal's token.
    """
    sink, last = bytearray(1 << 16), b""
    with contextlib.suppress(OSError):  # the source is gone: nobody is left to be told
        sock.settimeout(_FAREWELL_LIMIT_S)
        sock.sendall(refusal.frame().encode())
        sock.shutdown(socket.SHUT_WR)
        for _ in range(_FAREWELL_READS):
            length = sock.recv_into(sink)
            if not length:
                break
            last = (last + sink[:length])[-len(TAKEN.encode()) :]
    return last == TAKEN.encode()
