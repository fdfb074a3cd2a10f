"""The ring transfer: the handler fills slots with records of many pages, several requests underway.

While the VMM sends one slot the handler fills the others; at the target, while one record comes in the handler opens
those before. A slot is used again when its bytes are in the socket, or its record is opened.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from sealift.errors import StreamError
from sealift.vmm.handler import HandlerClient
from sealift.vmm.migration.method import Record
from sealift.wire.handler import Open, Opened, Pull, Sealed
from sealift.wire.record import pages_fitting


class RingSource:
    """Pulls the pages of rounds."""

    def __init__(self, handler: HandlerClient, channels: int) -> None:
        self._handler = handler
        self._channels = channels
        self._pulls = [0] * channels
        self._turn = 0
        self._record_pages = pages_fitting(handler.shape.slot_size)
        self._cut = False

    def cut(self) -> None:
        """Ask for no more: what is underway is the end of `records`."""
        self._cut = True

    def records(self, pages: int) -> Iterator[Record]:
        """The records of a round of `pages` pages."""
        free = list(range(self._handler.shape.slots))
        underway: deque[tuple[int, int]] = deque()
        to_ask = pages
        while (to_ask > 0 and not self._cut) or underway:
            while to_ask > 0 and free and not self._cut:
                slot = free.pop()
                underway.append((slot, self._ask(slot)))
                to_ask -= self._record_pages
            sealed = self._handler.receive(Sealed)
            slot, channel = underway.popleft()
            if sealed.length:
                yield Record((self._handler.slot_out(slot, sealed.length),), sealed.pages, channel)
            free.append(slot)
            if not underway and to_ask <= 0:
                to_ask = sealed.remaining

    def _ask(self, slot: int) -> int:
        """Have the slot filled; by which channel."""
        channel = self._turn % self._channels
        self._turn += 1
        self._pulls[channel] += 1
        self._handler.send(Pull(channel, self._pulls[channel], slot, self._record_pages))
        return channel


class RingTarget:
    """Has records opened that lie in slots."""

    def __init__(self, handler: HandlerClient) -> None:
        self._handler = handler
        self._next = 0
        self._underway = 0

    def space(self, length: int) -> memoryview:
        """A slot's front; waits until its last record is opened."""
        if length > self._handler.shape.slot_size:
            raise StreamError(f"a record of {length} bytes is over a slot's {self._handler.shape.slot_size}")
        if self._underway == self._handler.shape.slots:
            self._collect()
        return self._handler.slot_in(self._next)[:length]

    def take(self, length: int) -> None:
        """Have it opened, without waiting for that."""
        self._handler.send(Open(self._next, length))
        self._underway += 1
        self._next = (self._next + 1) % self._handler.shape.slots

    def settle(self) -> None:
        """Wait until all are opened."""
        while self._underway:
            self._collect()

    def _collect(self) -> None:
        self._underway -= 1
        self._handler.receive(Opened)
