"""The client of the guest's migration handler."""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import dataclass
from typing import TypeVar

from sealift.errors import InternalError, LostError
from sealift.vmm.memory import Mapping
from sealift.wire import handler as wire
from sealift.wire.channel import Channel
from sealift.wire.failure import from_failed
from sealift.wire.platform import Done, Failed, HandlerOpened, Message
from sealift.wire.token import TokenKind

R = TypeVar("R", bound=Message)


@dataclass(slots=True)
class HandlerCounts:
    """What went in and out of a handler, for metrics; `unsent_pages` as it said last."""

    sealed_records: int = 0
    sealed_bytes: int = 0
    opened_records: int = 0
    opened_bytes: int = 0
    unsent_pages: int = 0

    def sent(self, request: Message) -> None:
        """A request went to the handler."""
        if isinstance(request, wire.Open):
            self.opened_records += 1
            self.opened_bytes += request.length

    def came(self, reply: Message) -> None:
        """A reply came from it."""
        match reply:
            case wire.Sealed():
                self.sealed_records += 1
                self.sealed_bytes += reply.length
            case wire.Unsent() | wire.EpochBegun():
                self.unsent_pages = reply.pages


class HandlerClient:
    """Asks the handler; replies come in the order of requests, so several may be underway.

    Attributes:
        outgoing: ring slots that the handler fills (read-only here).
        incoming: ring slots that we fill.
        shape: number and size of slots, place of the mailbox.
        bell: an eventfd that is readable while the guest waits for pages that nobody was asked for (post-copy).
        counts: what went in and out.
    """

    def __init__(
        self, sock: socket.socket, shape: HandlerOpened, *, outgoing: Mapping, incoming: Mapping, bell: int
    ) -> None:
        self.shape = shape
        self.counts = HandlerCounts()
        self.outgoing = outgoing
        self.incoming = incoming
        self.bell = bell
        self._channel: Channel[wire.HandlerReply, Message] = Channel(sock, wire.HandlerReply)
        self._lock = threading.Lock()
        self._underway = 0
        self._mailbox_request = 0

    def close(self) -> None:
        """Disconnect and unmap the rings."""
        self._channel.close()
        self.outgoing.close()
        self.incoming.close()
        os.close(self.bell)

    def send(self, message: Message) -> None:
        """Ask without waiting; `receive` must follow once for each, in order and in the same thread."""
        self._channel.send(message)
        self._underway += 1
        self.counts.sent(message)

    def receive(self, expect: type[R], timeout_s: float | None = None) -> R:
        """The reply to the oldest request underway.

        Raises:
            SealiftError: what the handler says went wrong.
            TimeoutError: it said nothing for `timeout_s`; the request is still underway.
        """
        reply = self._reply(timeout_s)
        if isinstance(reply, Failed):
            raise from_failed(reply)
        if not isinstance(reply, expect):
            raise InternalError(f"the handler answered with {type(reply).__name__} instead of {expect.__name__}")
        return reply

    def drain(self, timeout_s: float) -> None:
        """Throw away the replies to whatever is underway: what was asked for is being given up.

        Raises:
            LostError: a reply does not come.
        """
        try:
            while self._underway:
                self._reply(timeout_s)
        except TimeoutError as error:
            raise LostError(f"the migration handler has not answered for {timeout_s:.0f} s") from error

    def _reply(self, timeout_s: float | None) -> wire.HandlerReply:
        if timeout_s is None:
            reply, _ = self._channel.receive()
        else:
            self._channel.settimeout(timeout_s)
            try:
                reply, _ = self._channel.receive()
            finally:
                self._channel.settimeout(None)
        self._underway -= 1
        self.counts.came(reply)
        return reply

    def next_mailbox_request(self) -> int:
        """A number for a request in the mailbox; none comes twice in the life of this guest here."""
        self._mailbox_request += 1
        return self._mailbox_request

    def request(self, message: Message, expect: type[R]) -> R:
        """Ask, and wait for the reply; nothing else may be underway."""
        with self._lock:
            try:
                self.send(message)
                return self.receive(expect)
            except LostError as error:
                raise LostError("the migration handler is gone") from error

    def do(self, message: Message) -> None:
        """A request that is answered with Done."""
        self.request(message, Done)

    def status(self) -> wire.HandlerStatus:
        """State and readiness."""
        return self.request(wire.GetStatus(), wire.HandlerStatus)

    def blob(self, message: Message) -> bytes:
        """A request that is answered with bytes for the other side's handler."""
        return self.request(message, wire.Blob).data

    def fetch(self, kind: TokenKind) -> bytes:
        """A token of this side."""
        return self.blob(wire.Fetch(kind))

    def deliver(self, token: bytes) -> None:
        """A token of the other side."""
        self.do(wire.Deliver(token))

    def slot_out(self, slot: int, length: int) -> memoryview:
        """The record that lies in an outgoing slot."""
        start = slot * self.shape.slot_size
        return self.outgoing.view[start : start + length]

    def slot_in(self, slot: int) -> memoryview:
        """A whole incoming slot."""
        start = slot * self.shape.slot_size
        return self.incoming.view[start : start + self.shape.slot_size]
