"""The network between two hosts: passes every byte on, and keeps a copy of each direction in a file."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import Final

from sealift.errors import SealiftError
from sealift.vmm.migration.transport import UnixAddress, connect

_CHUNK: Final = 256 * 1024
_LOCALHOST: Final = "127.0.0.1"


class RecordingRelay:
    """Waits for one source on a TCP port of this machine and connects it with a target.

    Attributes:
        uri: where the source is to migrate to.
        forward: file with every byte that went to the target.
        back: file with every byte that came from it.
    """

    def __init__(self, target: Path, directory: Path) -> None:
        self.forward = directory / "to-target"
        self.back = directory / "to-source"
        for path in (self.forward, self.back):
            path.touch(mode=0o600)
        self._target = UnixAddress(target)
        self._sockets: list[socket.socket] = []
        self._listening = socket.create_server((_LOCALHOST, 0), backlog=1)
        self.uri = f"tcp:{_LOCALHOST}:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, name="relay", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the connection, if there is one; returns when the recordings are complete."""
        _shut_down(self._listening)
        for sock in self._sockets:
            _shut_down(sock)
        self._thread.join()
        self._listening.close()

    def finished(self, patience_s: float) -> bool:
        """Wait until both sides have ended the connection; False if they have not."""
        self._thread.join(patience_s)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        try:
            source, _ = self._listening.accept()
        except OSError:
            return  # closed before anybody came
        with source:
            try:
                target = connect(self._target)
            except SealiftError:
                return  # the source sees the connection end, and says so
            with target:
                self._sockets += [source, target]
                other = threading.Thread(target=_pump, args=(target, source, self.back), name="relay-back")
                other.start()
                _pump(source, target, self.forward)
                other.join()


def _pump(source: socket.socket, sink: socket.socket, record: Path) -> None:
    """Pass bytes on until one side ends; record before passing on, so that nothing goes unseen."""
    buffer = memoryview(bytearray(_CHUNK))
    with record.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while length := source.recv_into(buffer):
            file.write(buffer[:length])
            sink.sendall(buffer[:length])
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
    with contextlib.suppress(OSError):
        source.shutdown(socket.SHUT_RD)


def _shut_down(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # not connected, or closed already: nobody waits
        sock.shutdown(socket.SHUT_RDWR)
