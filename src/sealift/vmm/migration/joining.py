"""A target's channels, each from a connection of its own, joined again epoch by epoch.

::

    the stream ─ records of channel 0 ─►┐
    side 1 ───── records of channel 1 ─►├─ one at a time ─► RecordSink (the handler)
    side 2 ───── records of channel 2 ─►┘

Connections run at their own pace, but no record of an epoch may come to the handler before every channel has brought
its token of the one before: whoever brings a token waits until all have. A channel that ends will bring no more: from
then on nobody waits, and the handler, which knows what is missing, decides.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from sealift.errors import SealiftError, StreamError
from sealift.vmm.migration.alarm import Alarm
from sealift.vmm.migration.method import RecordSink
from sealift.vmm.migration.streamio import EndedError, StreamReader, bulk_work, shut_down
from sealift.wire.record import MAX_RECORD, RecordHeader, RecordKind
from sealift.wire.side_connection import LENGTH_SIZE, decode_length


@dataclass(frozen=True, slots=True)
class Side:
    """A connection that brings one channel."""

    channel: int
    sock: socket.socket
    reader: StreamReader


class JoinedChannels:
    """All channels as one sink; the stream's thread uses it as `RecordSink`.

    What goes wrong on a side sounds the alarm, which the stream's reader heeds.
    """

    def __init__(self, sink: RecordSink, sides: Sequence[Side], alarm: Alarm) -> None:
        """Take over the sides' connections, and begin to read them."""
        self._sink = sink
        self._sides = sides
        self._alarm = alarm
        self._lock = threading.Lock()
        self._tokens = threading.Barrier(len(sides) + 1)
        self._record = memoryview(bytearray(MAX_RECORD))
        self._threads = [
            threading.Thread(target=self._serve, args=(side,), name=f"channel-{side.channel}", daemon=True)
            for side in sides
        ]
        for thread in self._threads:
            thread.start()

    def space(self, length: int) -> memoryview:
        """Where the stream's next record is to be received."""
        return self._record[:length]

    def take(self, length: int) -> None:
        """The stream's record lies there."""
        self._take(0, self._record[:length])

    def settle(self) -> None:
        """Every channel has ended, and every record was opened."""
        for thread in self._threads:
            thread.join()
        self._alarm.check()
        self._sink.settle()

    def close(self) -> None:
        """Give up what is underway, and let go of the connections."""
        for side in self._sides:
            shut_down(side.sock)
        self._tokens.abort()
        for thread in self._threads:
            thread.join()
        for side in self._sides:
            side.sock.close()

    def _serve(self, side: Side) -> None:
        record = memoryview(bytearray(MAX_RECORD))
        try:
            with bulk_work():
                while length := decode_length(side.reader.take(LENGTH_SIZE)):
                    side.reader.into(record[:length])
                    self._take(side.channel, record[:length])
            self._tokens.abort()
        except EndedError as error:
            lost = EndedError(f"the connection of channel {side.channel} broke")
            lost.__cause__ = error
            self._give_up(lost)
        except SealiftError as error:
            self._give_up(error)

    def _give_up(self, error: SealiftError) -> None:
        self._alarm.sound(error)
        self._tokens.abort()

    def _take(self, channel: int, record: memoryview) -> None:
        header = RecordHeader.decode(record)
        if header.channel != channel:
            raise StreamError(f"{header.name} came on the connection of channel {channel}")
        with self._lock:
            self._alarm.check()
            self._sink.space(len(record))[:] = record
            self._sink.take(len(record))
        if header.kind is RecordKind.EPOCH:
            with contextlib.suppress(threading.BrokenBarrierError):
                self._tokens.wait()
            self._alarm.check()
