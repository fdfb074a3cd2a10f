"""Small typed messages over a Unix SEQPACKET socket, with file descriptors beside them.

One datagram is one message (msgpack of a tagged ``msgspec.Struct``), so a reader never sees half of one and the
kernel's copy is the only copy: what was checked cannot change afterwards. Bulk data never travels here.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec

from sealift.errors import LostError, StreamError
from sealift.wire.packed import UNDECODABLE

MESSAGE_LIMIT = 96 * 1024
"""Bytes of the largest message: a 16 KiB secret, certificates or the tokens of a few hundred channels fit many
times over, and it stays below the kernel's default socket buffer (208 KiB)."""

FDS_LIMIT = 8
"""File descriptors beside one message: the most any reply carries is four."""

Incoming = TypeVar("Incoming")
Outgoing = TypeVar("Outgoing", bound=msgspec.Struct)


class Channel(Generic[Incoming, Outgoing]):
    """One end of a message socket; `incoming` is the (union) type that `receive` accepts.

    Sending and receiving may happen in two threads; two senders or two receivers need a lock of their own.
    """

    def __init__(self, sock: socket.socket, incoming: Any) -> None:  # noqa: ANN401  # a union is no type[Incoming]
        self._sock = sock
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Incoming] = msgspec.msgpack.Decoder(incoming)
        self._buffer = bytearray(MESSAGE_LIMIT)
        self._view = memoryview(self._buffer)

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def settimeout(self, seconds: float | None) -> None:
        """Limit how long `receive` waits; a wait that ends so raises TimeoutError."""
        self._sock.settimeout(seconds)

    def send(self, message: Outgoing, fds: Sequence[int] = ()) -> None:
        """Send one message; `fds` stay open here.

        Raises:
            LostError: the other end is gone.
        """
        data = self._encoder.encode(message)
        if len(data) > MESSAGE_LIMIT:
            raise StreamError(f"a {type(message).__name__} of {len(data)} bytes is over the limit of {MESSAGE_LIMIT}")
        try:
            if fds:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                self._sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
            else:
                self._sock.send(data, socket.MSG_NOSIGNAL)
        except OSError as error:
            raise LostError(f"the other process is gone ({error.strerror})") from error

    def receive(self) -> tuple[Incoming, list[int]]:
        """Wait for the next message and its descriptors, which the caller then owns.

        Raises:
            LostError: the other end is gone.
            StreamError: not a message of the expected types; any descriptors are closed.
        """
        try:
            size, ancillary, flags, _ = self._sock.recvmsg_into(
                [self._buffer],
                socket.CMSG_SPACE(FDS_LIMIT * array.array("i").itemsize),
                socket.MSG_CMSG_CLOEXEC,
            )
        except TimeoutError:
            raise
        except OSError as error:
            raise LostError(f"the other process is gone ({error.strerror})") from error
        fds = _descriptors(ancillary)
        if size == 0:
            raise LostError("the other process closed the connection")
        try:
            return self._decode(size, flags), fds
        except StreamError:
            for fd in fds:
                os.close(fd)
            raise

    def receive_alone(self) -> Incoming:
        """Wait for the next message, which must come without descriptors.

        Raises:
            LostError: the other end is gone.
            StreamError: as `receive`, or it came with descriptors; they are closed.
        """
        message, fds = self.receive()
        for fd in fds:
            os.close(fd)
        if fds:
            raise StreamError(f"a message came with {len(fds)} descriptors, which it does not take")
        return message

    def _decode(self, size: int, flags: int) -> Incoming:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise StreamError(f"a message is over the limit of {MESSAGE_LIMIT} bytes or {FDS_LIMIT} descriptors")
        try:
            return self._decoder.decode(self._view[:size])
        except UNDECODABLE as error:
            raise StreamError("a message does not parse") from error

    def shutdown(self) -> None:
        """Wake both ends: every wait on this connection ends with LostError."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # already disconnected: nobody is waiting

    def close(self) -> None:
        """Close this end."""
        self._sock.close()


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """A connected pair of message sockets."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
