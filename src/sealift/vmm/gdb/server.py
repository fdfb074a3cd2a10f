"""Serves gdb at a socket: one debugger at a time, in a thread of its own."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import Final

from sealift.errors import SealiftError, UserError
from sealift.vmm.gdb.packet import Parser, Received, Signal, framed
from sealift.vmm.gdb.session import Monitor, Session
from sealift.vmm.guest import Guest
from sealift.vmm.migration.transport import Listener
from sealift.vmm.qmp.endpoint import listen_here

_LOOK_S: Final = 0.05
"""How often it is looked whether a guest that was let go has stopped."""
_SEND_LIMIT_S: Final = 10.0
"""How long a debugger may stop reading before it is taken for gone."""
_READ_SIZE: Final = 1 << 16


def listen_for_gdb(uri: str) -> Listener:
    """Listen at `uri`, in which a TCP port without a host is one of this machine; raises as `listen_here`."""
    return listen_here(uri.replace("tcp::", "tcp:127.0.0.1:", 1) if uri.startswith("tcp::") else uri, "gdb")


class GdbServer:
    """Listens until `close`; a second debugger waits until the first has left.

    Args:
        guest: to be debugged; it stops when gdb comes, and goes on when gdb detaches. If the connection is lost it goes
            on if gdb found it running, unlike in QEMU: what keeps gdb from staying must not keep the guest.
        listening: a listening socket, which is closed with this.
        monitor: for gdb's ``monitor``.
    """

    def __init__(self, guest: Guest, listening: socket.socket, monitor: Monitor) -> None:
        self._guest = guest
        self._monitor = monitor
        self._listening = listening
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="gdb", daemon=True)
        self._thread.start()

    @property
    def attends_to_this_thread(self) -> bool:
        """Whether it is gdb's own request that is being carried out here."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Let go of whoever is there, and listen no more."""
        self._wake.close()
        self._thread.join()

    def _serve(self) -> None:
        with self._listening, self._woken:
            while self._ready(self._listening, None):
                client, _ = self._listening.accept()
                with client, contextlib.suppress(OSError):
                    client.settimeout(_SEND_LIMIT_S)
                    self._attend(client)

    def _ready(self, sock: socket.socket, timeout_s: float | None) -> bool | None:
        """Whether there is something to receive; False at the end of this server, None after the timeout."""
        readable, _, _ = select.select((sock, self._woken), (), (), timeout_s)
        if self._woken in readable:
            return False
        return True if readable else None

    def _attend(self, client: socket.socket) -> None:
        try:
            session = Session(self._guest, self._monitor)
        except SealiftError:
            return  # there is nothing to debug (yet, or now): gdb sees the connection end
        connection = _Connection(client, session)
        while not session.over:
            match self._ready(client, _LOOK_S if session.running else None):
                case False:
                    return
                case None:
                    connection.send(session.stopped())
                case True if not connection.receive():
                    session.lost()
                    return


class GdbService:
    """Serves gdb for a guest at one place at a time, or nowhere (`sealift.vmm.collaborators.Debugging`).

    Args:
        guest, monitor: as for `GdbServer`.
    """

    def __init__(self, guest: Guest, monitor: Monitor) -> None:
        self._guest = guest
        self._monitor = monitor
        self._lock = threading.Lock()
        self._serving: tuple[Listener, GdbServer] | None = None

    def serve(self, listener: Listener) -> None:
        """Serve gdb at `listener`, which is closed with this."""
        with self._lock:
            self._end()
            self._serving = listener, GdbServer(self._guest, listener.listening, self._monitor)

    def serve_at(self, uri: str) -> str:
        """See `sealift.vmm.collaborators.Debugging`."""
        self._require_another()
        listener = listen_for_gdb(uri)
        self.serve(listener)
        return str(listener.address)

    def end(self) -> None:
        """See `sealift.vmm.collaborators.Debugging`."""
        self._require_another()
        with self._lock:
            self._end()

    def _require_another(self) -> None:
        """No thread waits for its own end. Without the lock, which may be held by who waits for this thread's."""
        serving = self._serving
        if serving is not None and serving[1].attends_to_this_thread:
            raise UserError("gdb cannot end the server that it uses; let it detach, and ask somewhere else")

    def _end(self) -> None:
        if self._serving is not None:
            listener, server = self._serving
            server.close()
            listener.close()
            self._serving = None


class _Connection:
    """One debugger's packets."""

    def __init__(self, client: socket.socket, session: Session) -> None:
        self._client = client
        self._session = session
        self._parser = Parser()
        self._acknowledging = True

    def send(self, reply: bytes | None) -> None:
        """Send a reply, if there is one."""
        if reply is not None:
            self._client.sendall(framed(reply))

    def receive(self) -> bool:
        """Answer what has come; False if nothing comes any more."""
        try:
            data = self._client.recv(_READ_SIZE)
            for received in self._parser.feed(data):
                self._answer(received)
        except OSError:
            return False
        return bool(data)

    def _answer(self, received: Received) -> None:
        match received:
            case Signal.DAMAGED:
                self._client.sendall(b"-")
            case Signal.INTERRUPT:
                self.send(self._session.interrupt())
            case bytes():
                if self._acknowledging:
                    self._client.sendall(b"+")
                self.send(self._session.answer(received))
                self._acknowledging = self._acknowledging and received != b"QStartNoAckMode"
