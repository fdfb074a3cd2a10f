"""Where a source's records go: channel 0 in the stream, every other one on a connection of its own.

::

    LiveCopy ─ record of channel 0 ─► StreamOut ─► the stream's connection
             ─ record of channel n ─► Lane n: copied, then sent by a thread of its own

A lane holds one record: while it is sent (and encrypted, with TLS) the caller goes on to the other channels.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence

from sealift.errors import SealiftError
from sealift.vmm.memory import Buffer
from sealift.vmm.migration.method import Record
from sealift.vmm.migration.streamio import EndedError, StreamWriter, bulk_work, shut_down, stirred
from sealift.vmm.migration.streamout import StreamOut
from sealift.wire.handover import SealedKind
from sealift.wire.record import MAX_RECORD
from sealift.wire.side_connection import END, SideFront, encode_length


class Lane:
    """One channel's connection; `send` is for one thread."""

    def __init__(self, sock: socket.socket, writer: StreamWriter, front: SideFront) -> None:
        """Take over a socket that is connected to the target."""
        self._sock = sock
        self._writer = writer
        self._front = front
        self._buffer = memoryview(bytearray(MAX_RECORD))
        self._changed = threading.Condition()
        self._length: int | None = None
        self._ended = False
        self._error: SealiftError | None = None
        self._thread = threading.Thread(target=self._serve, name=f"channel-{front.channel}", daemon=True)
        self._thread.start()

    @property
    def sent(self) -> int:
        """Bytes so far."""
        return self._writer.sent

    def send(self, parts: Sequence[Buffer]) -> None:
        """Send a record; returns when it is copied.

        Raises:
            EndedError: the connection is gone.
        """
        with self._changed:
            self._wait_until_free()
            at = 0
            for part in parts:
                self._buffer[at : at + len(part)] = part
                at += len(part)
            self._length = at
            self._changed.notify_all()

    def check(self) -> None:
        """Is the connection still there? A target says nothing here, unless it is not the one that is meant.

        Raises:
            EndedError: it is not.
        """
        if stirred(self._sock):
            raise EndedError(f"the connection of channel {self._front.channel} broke")

    def flush(self) -> None:
        """Wait until everything is sent.

        Raises:
            EndedError: the connection is gone.
        """
        with self._changed:
            self._wait_until_free()

    def end(self) -> None:
        """The channel's last record was given; returns when all is sent.

        Raises:
            EndedError: the connection is gone.
        """
        self._stop()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Let go of the connection, whatever is underway."""
        shut_down(self._sock)
        self._stop()
        self._sock.close()

    def _stop(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()

    def _wait_until_free(self) -> None:
        self._changed.wait_for(lambda: self._length is None or self._error is not None)
        if self._error is not None:
            raise self._error

    def _serve(self) -> None:
        try:
            with bulk_work():
                self._writer.write(self._front.encode())
                while (length := self._next()) is not None:
                    self._writer.write(encode_length(length), self._buffer[:length])
                    self._sent()
                self._writer.write(END)
        except SealiftError as error:
            broken = EndedError(f"the connection of channel {self._front.channel} broke")
            broken.__cause__ = error
            with self._changed:
                self._error = broken
                self._changed.notify_all()

    def _next(self) -> int | None:
        with self._changed:
            self._changed.wait_for(lambda: self._length is not None or self._ended)
            return self._length

    def _sent(self) -> None:
        with self._changed:
            self._length = None
            self._changed.notify_all()


class Lanes:
    """All channels.

    Attributes:
        out: the stream.
    """

    def __init__(self, out: StreamOut) -> None:
        self.out = out
        self._beside: tuple[Lane, ...] = ()

    @property
    def sent(self) -> int:
        """Bytes so far, on all connections."""
        return self.out.sent + self.sent_beside

    @property
    def sent_beside(self) -> int:
        """Those of them that went beside the stream."""
        return sum(lane.sent for lane in self._beside)

    def open(self, beside: Sequence[Lane]) -> None:
        """From now on these have channels 1 and on."""
        self._beside = tuple(beside)

    def record(self, record: Record) -> None:
        """Send a record on its channel's connection."""
        if record.channel and self._beside:
            self._beside[record.channel - 1].send(record.parts)
        else:
            self.out.piece(SealedKind.RECORD, *record.parts)

    def check(self) -> None:
        """Are all connections beside the stream there?

        Raises:
            EndedError: one is not.
        """
        for lane in self._beside:
            lane.check()

    def flush(self) -> None:
        """Wait until everything that was given is sent."""
        for lane in self._beside:
            lane.flush()

    def end(self) -> None:
        """No channel has another record."""
        for lane in self._beside:
            lane.end()

    def close(self) -> None:
        """Let go of the connections beside the stream."""
        for lane in self._beside:
            lane.close()
