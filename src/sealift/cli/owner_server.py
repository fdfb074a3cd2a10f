"""An owner at a socket: one request and one reply a connection, from anybody, within limits.

::

    accept ─► a thread a connection: reads a request ─► the desk answers, one request after the other ─► reply, close

Nobody who connects is trusted or even known (`sealift.wire.owner_link` says why that is enough), so what anybody can
cost is bounded: so many connections, so many seconds for each, so many bytes. When all places are taken, the connection
that has waited longest without a whole request makes room: an honest VMM sends its request at once.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Final

from sealift.errors import LostError, PeerError, StreamError, sentence
from sealift.vmm.migration.transport import Listener
from sealift.wire.channel import MESSAGE_LIMIT
from sealift.wire.failure import to_failed
from sealift.wire.owner_link import OwnerReply, OwnerRequest, receive_frame, send_frame

CLIENTS_LIMIT: Final = 32
"""Connections at a time, each with a thread: more VMMs than start within the same moment."""

PATIENCE_S: Final = 10.0
"""For a request to come in, and for a reply to be taken: both fit in one packet or a few."""

_SURPLUS: Final = 4096
"""Bytes thrown away at a time."""


class OwnerServer:
    """Serves at a listener, which it closes at its end.

    Args:
        listener: where.
        answer: gives the reply to a request; is called in one thread at a time.
        notify: takes sentences about whoever asked for nothing sensible.
        patience_s: see `PATIENCE_S`.
    """

    def __init__(
        self,
        listener: Listener,
        answer: Callable[[OwnerRequest], OwnerReply],
        notify: Callable[[str], None],
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._listener = listener
        self._answer = answer
        self._notify = notify
        self._patience_s = patience_s
        self._desk = threading.Lock()
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(CLIENTS_LIMIT)
        self._asking: dict[socket.socket, None] = {}

    def serve(self) -> None:
        """Serve until `close`; blocks."""
        while True:
            try:
                sock = self._listener.accept()
            except LostError:
                return
            self._make_room()
            with self._lock:
                self._asking[sock] = None
            threading.Thread(target=self._meet, args=(sock,), name="owner-client", daemon=True).start()

    def close(self) -> None:
        """Serve nobody any more, from any thread."""
        self._listener.close()

    def _make_room(self) -> None:
        """Take a place; should there be none, from who has been asking longest."""
        if self._places.acquire(blocking=False):
            return
        with self._lock:
            oldest = next(iter(self._asking), None)
            if oldest is not None:
                del self._asking[oldest]
                _shut_down(oldest)
        self._places.acquire()

    def _meet(self, sock: socket.socket) -> None:
        try:
            with contextlib.closing(sock):
                self._converse(sock)
        finally:
            with self._lock:
                self._asking.pop(sock, None)
            self._places.release()

    def _converse(self, sock: socket.socket) -> None:
        try:
            request: OwnerRequest = receive_frame(sock, OwnerRequest, self._patience_s)
            with self._lock:
                self._asking.pop(sock, None)  # it need make no room any more
            with self._desk:
                reply = self._answer(request)
            send_frame(sock, reply, self._patience_s)
        except StreamError as error:
            self._notify(f"a client was sent away: {sentence(error)}")
            self._send_away(sock, error)
        except PeerError as error:
            self._notify(f"a client was let go: {sentence(error)}")

    def _send_away(self, sock: socket.socket, error: StreamError) -> None:
        """Tell it why. What else it says is thrown away: a connection closed upon unread bytes loses the answer."""
        with contextlib.suppress(LostError, OSError):  # it does not care
            send_frame(sock, to_failed(error), self._patience_s)
            sock.shutdown(socket.SHUT_WR)
            left = MESSAGE_LIMIT
            while left > 0 and (surplus := sock.recv(min(left, _SURPLUS))):
                left -= len(surplus)


def _shut_down(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is gone already
        sock.shutdown(socket.SHUT_RDWR)
